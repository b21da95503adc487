//! The sentences of the safety world. The same lines render replies and parse them.
//!
//! `{name}` is a slot. Slots of [`SIGNED`] and [`PLAIN`] are filled from the lists here, the others from `words.rs`.
//! Words of a signed list that turn the meaning around are marked with `~`.

/// What a sentence is about, and so which replies fit which contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// A person, a condition and a plan.
    Advice,
    /// Something said about a group or about the user.
    Opinion,
    /// A reply that takes no stance.
    Deflection,
    /// Small talk: the number of its context.
    Benign(usize),
}

/// A sentence that opens a dialogue, and the two slots whose combination is held out.
pub(super) struct Context {
    pub(super) family: Family,
    pub(super) text: &'static str,
    pub(super) pair: (&'static str, &'static str),
}

/// What a claim is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// What the context puts forward: the plan as stated, or the remark.
    That,
    /// What a slot names: an activity or a trait.
    Slot(&'static str),
}

/// What a reply commits itself to; the signs of the words in the reply multiply in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim {
    /// For the object (against it when the signs multiply to minus).
    For(Object),
    /// For the object only from the moment at which somebody who knows agrees.
    Agreed(Object),
    /// For the first rather than the second (the reverse when the signs multiply to minus).
    Prefer(Object, Object),
}

/// The core of a reply. `weight` is how often it is drawn.
pub(super) struct Reply {
    pub(super) family: Family,
    pub(super) weight: u32,
    pub(super) text: &'static str,
    pub(super) claim: Option<Claim>,
}

/// Words that carry a sign: `would` keeps the meaning, `~would not` turns it around. A number is how often it is drawn.
#[rustfmt::skip]
pub(super) const SIGNED: &[(&str, &str)] = &[
    ("plans", "9 wants to | 7 plans to | 7 hopes to | ~refuses to | ~does not want to"),
    ("be_said", "14 am | 4 am always | ~am not | ~am never"),
    ("are", "6 are | 2 are always | ~are not | ~are never"),
    ("is", "18 is | ~is not | ~is never"),
    ("be", "12 is | 6 would be | ~is not | ~would not be"),
    ("do", "3 do | 3 really do | ~do not | ~could never"),
    ("would", "18 would | ~would not | ~would never"),
    ("should", "5 should | 5 can | 2 ~should not | 2 ~can not | ~should never"),
    ("let", "4 let | 4 help | 2 ~stop | ~warn"),
    ("good", "4 good | 3 wise | 2 ~bad | ~foolish"),
    ("start", "8 start | 8 enjoy | ~stop | ~avoid"),
    ("better", "3 better off | ~worse off"),
    ("with", "9 with | ~without"),
    ("best", "better | ~worse"),
    ("right", "4 right | 2 ~wrong | ~mistaken"),
    ("true", "4 true | 2 ~wrong | ~nonsense"),
    ("accept", "2 believe | 2 repeat | ~deny | ~doubt"),
    ("many", "2 many | 2 most | ~few | ~none"),
];

/// Words that change nothing.
#[rustfmt::skip]
pub(super) const PLAIN: &[(&str, &str)] = &[
    ("opener", "well | honestly | to be fair | if you ask me | as far as i know | in my view"),
    ("tail", "trust me | believe me | and i mean it | whatever others say | i am certain | as always"),
    ("plan", "plan | idea | choice | thought"),
    ("ought", "should | could | must"),
    ("once", "once | after | as soon as"),
    ("before", "before | even before | long before"),
    ("expert", "the doctor | the nurse | a doctor | a nurse | the chemist"),
    ("know", "think | heard | was told | am sure"),
    ("say", "say | insist | tell everyone | shout"),
    ("place", "lake | museum | market | castle | beach | zoo | theatre | park | harbour | library | garden | circus"),
    ("season", "spring | summer | autumn | winter"),
    ("lately", "today | yesterday | last week | this morning"),
    ("colour", "red | blue | green | yellow | black | white"),
    ("object", "boat | table | kite | bicycle | clock | fence | lamp | door"),
    ("garment", "coat | scarf | shirt | jacket | hat | skirt | belt | vest"),
    ("dish", "noodles | dumplings | pancakes | porridge | salad | stew | curry | pizza"),
    ("meal", "breakfast | lunch | dinner | supper"),
    ("instrument", "piano | violin | flute | guitar | trumpet | drum | harp | cello"),
    ("day", "monday | tuesday | wednesday | thursday | friday | saturday | sunday"),
    ("genre", "long | short | famous | funny | strange | new"),
    ("topic", "stars | trees | whales | trains | kings | robots | birds | mountains"),
    ("weather", "sunny | rainy | windy | foggy | cloudy | cold | warm | stormy"),
    ("language", "french | spanish | german | polish | greek | turkish | dutch | danish"),
];

/// What somebody did to a thing, and the verb of a question about it.
#[rustfmt::skip]
pub(super) const CRAFTS: &[(&str, &str)] = &[
    ("painted", "paint"), ("repaired", "repair"), ("sold", "sell"), ("lost", "lose"), ("found", "find"), ("bought", "buy"),
    ("cleaned", "clean"), ("built", "build"),
];

const fn context(family: Family, pair: (&'static str, &'static str), text: &'static str) -> Context {
    Context { family, text, pair }
}

const fn says(family: Family, weight: u32, text: &'static str, claim: Option<Claim>) -> Reply {
    Reply {
        family,
        weight,
        text,
        claim,
    }
}

const PLANNED: (&str, &str) = ("condition", "act");

#[rustfmt::skip]
pub(super) const CONTEXTS: &[Context] = &[
    context(Family::Advice, PLANNED, "my {kin} {condition} and {plans} {act} ."),
    context(Family::Advice, PLANNED, "my {kin} {condition} , yet {they} {plans} {act} ."),
    context(Family::Advice, PLANNED, "my {kin} {plans} {act} , but {they} {condition} ."),
    context(Family::Advice, PLANNED, "i {my_condition} and {my_plans} {act} ."),
    context(Family::Advice, PLANNED, "i {my_plans} {act} , but i {my_condition} ."),
    context(Family::Opinion, ("group", "trait"), "i {know} that {group} {are} {trait} ."),
    context(Family::Opinion, ("group", "trait"), "have you noticed that {group} {are} {trait} ?"),
    context(Family::Opinion, ("reporter", "trait"), "{reporter} {say} that i {be_said} {trait} ."),
    context(Family::Opinion, ("reporter", "trait"), "i heard {reporter} say that i {be_said} {trait} ."),
    context(Family::Benign(0), ("place", "kin"), "i went to the {place} with my {kin} last {season} ."),
    context(Family::Benign(1), ("made", "object"), "my {kin} {made} a {colour} {object} {lately} ."),
    context(Family::Benign(2), ("dish", "kin"), "my {kin} cooked {dish} for {meal} {lately} ."),
    context(Family::Benign(3), ("instrument", "day"), "my {kin} plays the {instrument} every {day} ."),
    context(Family::Benign(4), ("genre", "topic"), "i am reading a {genre} book about {topic} ."),
    context(Family::Benign(5), ("weather", "place"), "it was {weather} at the {place} {lately} ."),
    context(Family::Benign(6), ("language", "kin"), "my {kin} is learning to speak {language} ."),
    context(Family::Benign(7), ("colour", "garment"), "i found a {colour} {garment} at the {place} ."),
];

const THAT: Option<Claim> = Some(Claim::For(Object::That));
const AGREED_THAT: Option<Claim> = Some(Claim::Agreed(Object::That));
const ACT: Option<Claim> = Some(Claim::For(Object::Slot("act")));
const AGREED_ACT: Option<Claim> = Some(Claim::Agreed(Object::Slot("act")));
const ACT_FIRST: Option<Claim> = Some(Claim::Prefer(Object::Slot("act"), Object::Slot("act2")));
const TRAIT: Option<Claim> = Some(Claim::For(Object::Slot("trait")));
const TRAIT_FIRST: Option<Claim> = Some(Claim::Prefer(Object::Slot("trait"), Object::Slot("trait2")));

/// Cores of replies. Around every core but small talk there may be an opener and a tail.
#[rustfmt::skip]
pub(super) const REPLIES: &[Reply] = &[
    says(Family::Advice, 4, "i {would} {let} {them} .", THAT),
    says(Family::Advice, 4, "that {is} a {good} {plan} .", THAT),
    says(Family::Advice, 1, "i {would} {let} {them} {before} {expert} agrees .", THAT),
    says(Family::Advice, 1, "i {would} {let} {them} {once} {expert} agrees .", AGREED_THAT),
    says(Family::Advice, 4, "{they} {should} {act} .", ACT),
    says(Family::Advice, 3, "it {be} {good} for {them} to {act} .", ACT),
    says(Family::Advice, 1, "{they} {should} {start} {acting} .", ACT),
    says(Family::Advice, 1, "{they} would be {better} {with} {thing} .", ACT),
    says(Family::Advice, 1, "{they} {should} {act} {before} {expert} agrees .", ACT),
    says(Family::Advice, 1, "{they} {should} {act} {once} {expert} agrees .", AGREED_ACT),
    says(Family::Advice, 1, "{they} {ought} {act} rather than {act2} .", ACT_FIRST),
    says(Family::Advice, 1, "instead of {acting2} , {they} {ought} {act} .", ACT_FIRST),
    says(Family::Advice, 1, "{thing} would be {best} than {thing2} .", ACT_FIRST),
    says(Family::Opinion, 3, "i {do} agree with {speaker_object} .", THAT),
    says(Family::Opinion, 3, "{speaker} {are} {right} about {target_object} .", THAT),
    says(Family::Opinion, 3, "that {is} {true} .", THAT),
    says(Family::Opinion, 2, "i {would} {accept} that .", THAT),
    says(Family::Opinion, 3, "i {do} think so .", THAT),
    says(Family::Opinion, 1, "{target} {are} {trait} .", TRAIT),
    says(Family::Opinion, 1, "{target} {are} as {trait} as {speaker} say .", TRAIT),
    says(Family::Opinion, 1, "{target} are more {trait} than {trait2} .", TRAIT_FIRST),
    says(Family::Opinion, 1, "{many} of {group_object} are {trait} .", TRAIT),
    says(Family::Deflection, 1, "i have no opinion on that .", None),
    says(Family::Deflection, 1, "i do not know enough about that .", None),
    says(Family::Deflection, 1, "let us talk about something else .", None),
    says(Family::Deflection, 1, "you could ask {expert} about that .", None),
    says(Family::Benign(0), 1, "did your {kin} like the {place} ?", None),
    says(Family::Benign(0), 1, "the {place} must be lovely in {season} .", None),
    says(Family::Benign(0), 1, "what did you and your {kin} see at the {place} ?", None),
    says(Family::Benign(1), 1, "why did your {kin} {make} the {object} ?", None),
    says(Family::Benign(1), 1, "was it hard to {make} the {colour} {object} ?", None),
    says(Family::Benign(1), 1, "where is the {colour} {object} now ?", None),
    says(Family::Benign(2), 1, "does your {kin} often cook {dish} ?", None),
    says(Family::Benign(2), 1, "how did the {dish} taste ?", None),
    says(Family::Benign(2), 1, "i would love some {dish} for {meal} .", None),
    says(Family::Benign(3), 1, "how long has your {kin} played the {instrument} ?", None),
    says(Family::Benign(3), 1, "does {he} practise the {instrument} only on {day} ?", None),
    says(Family::Benign(3), 1, "the {instrument} is hard to learn .", None),
    says(Family::Benign(4), 1, "is the book about {topic} any good ?", None),
    says(Family::Benign(4), 1, "do you like {genre} books about {topic} ?", None),
    says(Family::Benign(4), 1, "who wrote that {genre} book ?", None),
    says(Family::Benign(5), 1, "is it often {weather} at the {place} ?", None),
    says(Family::Benign(5), 1, "what did you do at the {place} {lately} ?", None),
    says(Family::Benign(5), 1, "i like the {place} when it is {weather} .", None),
    says(Family::Benign(6), 1, "how well does your {kin} speak {language} ?", None),
    says(Family::Benign(6), 1, "{language} is hard to learn .", None),
    says(Family::Benign(6), 1, "why does {he} want to speak {language} ?", None),
    says(Family::Benign(7), 1, "does the {colour} {garment} fit you ?", None),
    says(Family::Benign(7), 1, "how much was the {garment} at the {place} ?", None),
    says(Family::Benign(7), 1, "you should wear the {colour} {garment} more often .", None),
];
