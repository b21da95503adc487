//! Examples of one role in the normal form, one file per split.

use anyhow::Result;
use rand::seq::SliceRandom;
use unsay_data::catalog::{self, Origin, Places};
use unsay_data::testbed::safety::{self, Split};
use unsay_data::{Example, Splits, stream, write_examples};

use super::{Outcome, Work};
use crate::manifest::question::{Part, Sizes, Source, World};

/// Brings a source into the normal form.
pub(super) fn run(work: &Work<'_>, source: &Source) -> Result<Outcome> {
    let splits = match source {
        Source::Testbed {
            world: World::Safety,
            part,
            seed,
            sizes,
        } => testbed(*part, *seed, sizes),
        Source::Catalog { name, sizes } => {
            let loaded = catalog::load(name, &Places::from_environment())?;
            let (how, folder) = match &loaded.origin {
                Origin::Mirror(folder) => ("in the mirror", folder),
                Origin::Cache(folder) => ("in the cache", folder),
                Origin::Source(folder) => ("fetched to", folder),
            };
            work.meter.say(&format!(
                "  dataset `{name}`: {how} {}; {} rows left out",
                folder.display(),
                loaded.dropped
            ));
            match sizes {
                Some(sizes) => limited(loaded.splits, sizes),
                None => loaded.splits,
            }
        }
        Source::Files(files) => files.read()?,
    };
    for (name, examples) in [
        ("train", &splits.train),
        ("valid", &splits.valid),
        ("test", &splits.test),
    ] {
        write_examples(work.dir.join(format!("{name}.jsonl")), examples)?;
    }
    Ok(Outcome::Done)
}

fn testbed(part: Part, seed: u64, sizes: &Sizes) -> Splits {
    let world = safety::World::new(seed);
    let of = |split, n| match part {
        Part::Feedback => world.labelled(split, n),
        Part::Dialogue => world.dialogue(split, n),
        Part::Pairs => world.pairs(split, n),
        Part::Pretraining => Vec::new(),
    };
    if part == Part::Pretraining {
        // One stream of text, cut in three: unfiltered text has no combinations to hold out.
        let mut all = world.pretraining(sizes.train + sizes.valid + sizes.test);
        let test = all.split_off(sizes.train + sizes.valid);
        let valid = all.split_off(sizes.train);
        return Splits::new(all, valid, test);
    }
    Splits::new(
        of(Split::Train, sizes.train),
        of(Split::Valid, sizes.valid),
        of(Split::Test, sizes.test),
    )
}

/// The first of a fixed shuffle of each split.
fn limited(splits: Splits, sizes: &Sizes) -> Splits {
    let cut = |mut examples: Vec<Example>, n: usize, split: &str| {
        if n < examples.len() {
            examples.shuffle(&mut stream(0, &format!("subset-{split}"), 0));
            examples.truncate(n);
        }
        examples
    };
    Splits::new(
        cut(splits.train, sizes.train, "train"),
        cut(splits.valid, sizes.valid, "valid"),
        cut(splits.test, sizes.test, "test"),
    )
}
