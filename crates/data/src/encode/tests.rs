use super::*;
use proptest::prelude::*;

fn bytes() -> Tokenizer {
    Tokenizer::train(std::iter::empty(), 260).unwrap()
}

fn example(prompt: &str, completion: &str, label: Label) -> Example {
    Example {
        id: "x".into(),
        prompt: prompt.into(),
        completion: completion.into(),
        label,
        seen_prompt: true,
        messages: Vec::new(),
    }
}

#[test]
fn a_prompt_keeps_its_end_and_a_completion_its_beginning() {
    let tokenizer = bytes();
    let limits = Limits {
        max_prompt: 3,
        max_completion: 2,
    };
    let examples = [
        example("abcdef", "xyz", Label::Negative),
        example("abc", "xy", Label::Positive),
        example("", "x", Label::Unlabelled),
        example("abc", " \n", Label::Positive),
    ];
    let (encoded, account) = encode_all(&tokenizer, &examples, &limits).unwrap();
    let text = |e: &Encoded, r: std::ops::Range<usize>| tokenizer.decode(&e.ids[r]).unwrap();
    assert_eq!(encoded.len(), 3);
    assert_eq!(text(&encoded[0], 0..5), "def");
    assert_eq!(text(&encoded[0], 5..7), "xy");
    assert_eq!(encoded[0].ids.len(), 7);
    assert_eq!(encoded[0].spans[0].start, 5);
    assert_eq!(encoded[1].ids.len(), 8);
    assert_eq!(encoded[1].ids[7], Tokenizer::EOS);
    assert_eq!(encoded[2].ids[..2], [Tokenizer::BOS, Tokenizer::SEP]);
    assert_eq!(encoded[2].spans[0].start, 2);
    let expected = Supervision {
        examples: 3,
        examples_positive: 1,
        examples_negative: 1,
        examples_unlabelled: 1,
        dropped: 1,
        tokens_positive: 3,
        tokens_negative: 2,
        tokens_unlabelled: 2,
        tokens_cut_prompt: 3,
        tokens_cut_completion: 1,
        examples_cut: 1,
    };
    assert_eq!(account, expected);
    let prompt = encode_prompt(&tokenizer, "abcdef", &limits).unwrap();
    assert_eq!(prompt, encoded[0].ids[..5]);
}

#[test]
fn limits_leave_some_text() {
    let limits = Limits {
        max_prompt: 4,
        max_completion: 0,
    };
    let error = encode_all(&bytes(), &[], &limits).unwrap_err();
    assert_eq!(error.to_string(), "max_completion: expected at least 1 token, got 0");
}

proptest! {
    #[test]
    fn truncation_keeps_to_the_limits_and_never_empties(
        prompt in "[a-f ]{0,20}",
        completion in "[a-f]{1,20}",
        max_prompt in 1usize..12,
        max_completion in 1usize..12,
    ) {
        let tokenizer = bytes();
        let limits = Limits { max_prompt, max_completion };
        let examples = [example(&prompt, &completion, Label::Positive)];
        let (encoded, account) = encode_all(&tokenizer, &examples, &limits).unwrap();
        let [one] = encoded.as_slice() else { panic!("expected one example") };
        prop_assert!(one.ids.len() <= limits.width());
        prop_assert_eq!(one.ids[0], Tokenizer::BOS);
        prop_assert_eq!(one.ids[one.spans[0].start - 1], Tokenizer::SEP);
        let kept_prompt = tokenizer.decode(&one.ids[..one.spans[0].start]).unwrap();
        let kept = tokenizer.decode(&one.ids[one.spans[0].start..]).unwrap();
        prop_assert!(prompt.ends_with(&kept_prompt));
        prop_assert!(!kept.is_empty() && completion.starts_with(&kept));
        prop_assert_eq!(kept_prompt.len(), prompt.len().min(max_prompt));
        prop_assert_eq!(kept.len(), completion.len().min(max_completion));
        let ends = one.ids.last() == Some(&Tokenizer::EOS);
        prop_assert_eq!(ends, kept == completion);
        prop_assert_eq!(account.tokens_cut_prompt, prompt.len() - kept_prompt.len());
        prop_assert_eq!(account.tokens_cut_completion, completion.len() - kept.len());
        prop_assert_eq!(account.tokens_positive, kept.len() + usize::from(ends));
    }
}
