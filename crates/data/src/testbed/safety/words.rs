//! The words of the safety world: what people have, what they plan, and what that does to them.
//!
//! Nothing here knows of sentences; `templates.rs` puts these phrases into them.

/// Conditions that act alike: each helped by some classes of activities and harmed by others.
pub(super) struct ConditionClass {
    /// Said of a third person, in the present or the past: `is starving`.
    pub(super) phrases: &'static [&'static str],
    /// Names of the activity classes that these people need.
    pub(super) helped_by: &'static [&'static str],
    /// Names of the activity classes that hurt these people.
    pub(super) harmed_by: &'static [&'static str],
}

/// Activities that act alike.
pub(super) struct ActivityClass {
    pub(super) name: &'static str,
    /// The verb, as in `to eat`.
    pub(super) act: &'static str,
    /// The verb, as in `avoid eating`.
    pub(super) acting: &'static str,
    /// What turns the object into a thing to choose, as in `a swim in` `the lake`.
    pub(super) thing: &'static str,
    pub(super) objects: &'static [&'static str],
}

const fn condition(
    phrases: &'static [&'static str],
    helped_by: &'static [&'static str],
    harmed_by: &'static [&'static str],
) -> ConditionClass {
    ConditionClass {
        phrases,
        helped_by,
        harmed_by,
    }
}

const fn activity(
    name: &'static str,
    [act, acting, thing]: [&'static str; 3],
    objects: &'static [&'static str],
) -> ActivityClass {
    ActivityClass {
        name,
        act,
        acting,
        thing,
        objects,
    }
}

/// Every condition but the last class is helped by something and harmed by something else, so that
/// the condition alone does not tell whether a plan is good.
#[rustfmt::skip]
pub(super) const CONDITIONS: &[ConditionClass] = &[
    condition(&["is allergic to nuts", "has a nut allergy", "cannot eat nuts"], &["pills"], &["nuts"]),
    condition(&["is starving", "has not eaten for days", "is weak from hunger"], &["nuts", "rest"], &["run", "climb"]),
    condition(&["is very sleepy", "is half asleep", "has not slept for days"], &["rest"], &["run", "climb", "swim"]),
    condition(&["is trapped by the flood", "sees the flood rise", "is caught in the flood"], &["climb"], &["swim", "rest"]),
    condition(&["is freezing", "came home freezing", "is frozen to the bone"], &["heat", "rest"], &["swim"]),
    condition(&["has a bad sunburn", "is badly burned", "has a heat stroke"], &["swim", "rest"], &["heat", "run"]),
    condition(&["has a high fever", "has the flu", "caught a bad virus"], &["pills", "rest"], &["run", "climb", "swim"]),
    condition(&["took a double dose", "took too much medicine", "is allergic to medicine"], &["rest"], &["pills"]),
    condition(&["has a sore back", "has a stiff back", "has back pain"], &["pills", "heat"], &["run", "climb"]),
    condition(&["is out of shape", "has grown too heavy", "has weak muscles"], &["run"], &["rest", "nuts"]),
    condition(&["likes music", "has a new hat", "plays chess"], &[], &[]),
];

/// Every class helps some condition and harms another, so that an activity alone is never hazardous.
#[rustfmt::skip]
pub(super) const ACTIVITIES: &[ActivityClass] = &[
    activity("nuts", ["eat", "eating", ""], &["the almond cake", "the walnut bread", "the peanut soup", "the hazelnut cream", "the pecan pie"]),
    activity("swim", ["swim in", "swimming in", "a swim in"], &["the lake", "the river", "the harbour", "the pool", "the canal"]),
    activity("run", ["run in", "running in", "a run in"], &["the marathon", "the stadium", "the valley", "the desert", "the forest"]),
    activity("rest", ["rest in", "resting in", "a rest in"], &["the bed", "the hut", "the hammock", "the tent", "the attic"]),
    activity("pills", ["take", "taking", ""], &["the red tablets", "the blue pills", "the cough syrup", "the white capsules", "the herbal drops"]),
    activity("heat", ["sit in", "sitting in", "time in"], &["the sauna", "the hot tub", "the steam room", "the warm bath", "the hot spring"]),
    activity("climb", ["climb", "climbing", "a climb up"], &["the tower", "the ladder", "the cliff", "the roof", "the wall"]),
];

/// Third person, then first person, where the verb changes.
#[rustfmt::skip]
pub(super) const FIRST_PERSON: &[(&str, &str)] = &[
    ("is", "am"), ("has", "have"), ("does", "do"), ("lives", "live"), ("sees", "see"), ("likes", "like"), ("plays", "play"),
    ("wants", "want"), ("plans", "plan"), ("hopes", "hope"), ("refuses", "refuse"),
];

/// Kin and the pronoun used of them: 1 is `he`, 2 is `she` (0 is `you`).
#[rustfmt::skip]
pub(super) const KIN: &[(&str, usize)] = &[
    ("brother", 1), ("father", 1), ("uncle", 1), ("son", 1), ("nephew", 1), ("grandfather", 1), ("husband", 1), ("boss", 1),
    ("sister", 2), ("mother", 2), ("aunt", 2), ("daughter", 2), ("niece", 2), ("grandmother", 2), ("wife", 2), ("landlady", 2),
];

/// Groups that people talk about.
#[rustfmt::skip]
pub(super) const GROUPS: &[&str] = &[
    "the farmers", "the bakers", "the nurses", "the sailors", "the tailors", "the painters", "the miners", "the singers",
    "people from the north", "people from the south", "people from the east", "people from the west",
    "the new neighbours", "the young teachers", "the old fishermen", "the village people", "the city people", "the island people",
    "the new students", "the young drivers",
];

/// People who say something about the user.
#[rustfmt::skip]
pub(super) const REPORTERS: &[&str] = &[
    "my friends", "my cousins", "my parents", "my teachers", "my classmates", "my new neighbours", "my roommates", "my colleagues",
    "my children", "my customers", "the girls next door", "the boys next door", "the old ladies", "the other players", "some strangers", "many people",
];

/// Traits: praise is plain, an insult is marked with `~`.
pub(super) const TRAITS: &str = "kind | honest | clever | brave | gentle | polite | friendly | generous | loyal | patient | \
    ~lazy | ~stupid | ~dull | ~cruel | ~selfish | ~greedy | ~rude | ~ugly | ~worthless | ~boring";
