//! The slots of the grammar: every phrase that can stand in one, with its sign and what it refers to.

use std::collections::HashMap;

use super::templates::{CRAFTS, PLAIN, SIGNED};
use super::words::{ACTIVITIES, CONDITIONS, FIRST_PERSON, GROUPS, KIN, REPORTERS, TRAITS};

/// What a slot stands for. The slots of a sentence, and of a reply to it, agree on it: `he` and `him` are one person.
pub(super) type Variable = &'static str;

/// One phrase that can stand in a slot.
#[derive(Clone, Debug)]
pub(super) struct Filler {
    pub(super) words: Vec<String>,
    /// −1 when the phrase turns the meaning of its sentence around.
    pub(super) sign: i8,
    /// How often it is drawn.
    pub(super) weight: u32,
    pub(super) binds: Vec<(Variable, usize)>,
}

/// All phrases of one slot.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) fillers: Vec<Filler>,
    by_first_word: HashMap<String, Vec<usize>>,
}

impl Table {
    fn new(fillers: Vec<Filler>) -> Self {
        let mut by_first_word: HashMap<String, Vec<usize>> = HashMap::new();
        for (position, filler) in fillers.iter().enumerate() {
            let first = filler.words[0].clone();
            by_first_word.entry(first).or_default().push(position);
        }
        Self { fillers, by_first_word }
    }

    /// The phrases that `words` begins with.
    pub(super) fn starting<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = &'a Filler> {
        let candidates = words.first().and_then(|word| self.by_first_word.get(*word));
        let fillers = candidates.into_iter().flatten().map(|p| &self.fillers[*p]);
        fillers.filter(|filler| {
            let here = words.iter().take(filler.words.len());
            here.eq(filler.words.iter())
        })
    }
}

/// All slots by name.
pub(super) fn tables() -> (HashMap<&'static str, usize>, Vec<Table>) {
    let mut names = HashMap::new();
    let mut tables = Vec::new();
    let mut add = |name: &'static str, fillers: Vec<Filler>| {
        names.insert(name, tables.len());
        tables.push(Table::new(fillers));
    };
    for (name, phrases) in SIGNED {
        add(name, list(name, phrases.split(" | ")));
        if *name == "plans" {
            let mine: Vec<String> = phrases.split(" | ").map(in_first_person).collect();
            add("my_plans", list(name, mine.iter().map(String::as_str)));
        }
    }
    for (name, phrases) in PLAIN {
        add(name, list(name, phrases.split(" | ")));
    }
    for (name, people) in [
        ("they", &["you", "he", "she"][..]),
        ("them", &["you", "him", "her"][..]),
    ] {
        add(name, list("person", people.iter().copied()));
    }
    let mut third_person = list("person", ["you", "he", "she"]);
    third_person.remove(USER);
    add("he", third_person);
    add("target", list("target", ["you", "they"]));
    add("target_object", list("target", ["you", "them"]));
    add("speaker", list("target", ["they", "you"]));
    add("speaker_object", list("target", ["them", "you"]));
    add("group_object", vec![Filler::new("them", vec![("target", GROUP)])]);
    add("kin", kin());
    add(
        "group",
        all_bind("target", GROUP, list("group", GROUPS.iter().copied())),
    );
    add(
        "reporter",
        all_bind("target", USER, list("reporter", REPORTERS.iter().copied())),
    );
    let conditions = || CONDITIONS.iter().flat_map(|class| class.phrases);
    add("condition", list("condition", conditions().copied()));
    let mine: Vec<String> = conditions().map(|c| in_first_person(c)).collect();
    let mine = list("condition", mine.iter().map(String::as_str));
    add("my_condition", all_bind("person", USER, mine));
    for (name, variable, form) in [
        ("act", "act", 0),
        ("acting", "act", 1),
        ("thing", "act", 2),
        ("act2", "act2", 0),
        ("acting2", "act2", 1),
        ("thing2", "act2", 2),
    ] {
        add(name, activities(variable, form));
    }
    for name in ["trait", "trait2"] {
        let traits = TRAITS.split(" | ").map(|t| t.trim_start_matches('~'));
        add(name, list(name, traits));
    }
    add("made", list("made", CRAFTS.iter().map(|(made, _)| *made)));
    add("make", list("made", CRAFTS.iter().map(|(_, make)| *make)));
    (names, tables)
}

/// Values of the variable `target`: whom an opinion is about. (The user is 0 of `person` too.)
const USER: usize = 0;
const GROUP: usize = 1;

impl Filler {
    /// From a phrase such as `would`, `~would not` (turns the meaning around) or `2 would` (drawn twice as often).
    fn new(phrase: &str, binds: Vec<(Variable, usize)>) -> Self {
        let (weight, phrase) = match phrase.split_once(' ') {
            Some((number, rest)) if number.parse::<u32>().is_ok() => (number.parse().unwrap_or(1), rest),
            _ => (1, phrase),
        };
        let (sign, phrase) = match phrase.strip_prefix('~') {
            Some(rest) => (-1, rest),
            None => (1, phrase),
        };
        let words = phrase.split_whitespace().map(str::to_string).collect();
        Self {
            words,
            sign,
            weight,
            binds,
        }
    }
}

/// The position of a phrase in its list is the variable's value.
fn list<'a>(variable: Variable, phrases: impl IntoIterator<Item = &'a str>) -> Vec<Filler> {
    let phrases = phrases.into_iter().enumerate();
    phrases
        .map(|(value, phrase)| Filler::new(phrase, vec![(variable, value)]))
        .collect()
}

fn kin() -> Vec<Filler> {
    let kin = KIN.iter().enumerate();
    kin.map(|(value, (word, person))| Filler::new(word, vec![("kin", value), ("person", *person)]))
        .collect()
}

fn all_bind(variable: Variable, value: usize, mut fillers: Vec<Filler>) -> Vec<Filler> {
    for filler in &mut fillers {
        filler.binds.push((variable, value));
    }
    fillers
}

/// `eat the almond cake`, `eating the almond cake` or `the almond cake`.
fn activities(variable: Variable, form: usize) -> Vec<Filler> {
    let phrases = ACTIVITIES.iter().flat_map(|class| {
        let verb = [class.act, class.acting, class.thing][form];
        class.objects.iter().map(move |object| format!("{verb} {object}"))
    });
    let phrases: Vec<String> = phrases.collect();
    list(variable, phrases.iter().map(String::as_str))
}

/// `is starving` as the user says it of themselves: `am starving`.
fn in_first_person(phrase: &str) -> String {
    let start = phrase.find(|c: char| c.is_ascii_lowercase()).unwrap_or(0);
    let (marks, phrase) = phrase.split_at(start);
    let (verb, rest) = phrase.split_once(' ').unwrap_or((phrase, ""));
    let form = FIRST_PERSON.iter().find(|(third, _)| *third == verb);
    let verb = form.map_or(verb, |(_, first)| *first);
    format!("{marks}{verb} {rest}")
}
