//! The losses against numbers that the reference code produced (`tests/golden`, or the folder in
//! `UNSAY_GOLDEN_DIR`): values and gradients in `f64`, at the tolerance that each file suggests.
//!
//! The files come from running the released code of each method; a case is its inputs, outputs and gradients. What kind
//! of case it is, its parameters and inputs say, so that the numbers of anyone else can stand in a file. Where a
//! reference differs on purpose, that is recognised by the numbers too, and ours are compared with what is right instead.
//! A folder of own numbers needs not have every file.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

#[path = "../plain/mod.rs"]
mod plain;

mod advantages;
mod causal;
mod cringe;
mod director;
mod files;
mod harness;
mod kl;
mod pairs;
mod policy;
mod ppo;
mod ranked;
mod repetition;
mod scores;
mod table;
mod tokens;
mod trl_head;
mod unlikelihood;
mod unpaired;
mod with_reference;
mod without_reference;

/// Makes the list of the files, and a test for each.
macro_rules! golden {
    ($($file:ident: $compare:path, $compared:literal + $listed:literal => $test:ident;)*) => {
        /// Every file: its name, what compares it, and how many of the committed cases are compared and listed.
        const FILES: &[(&str, files::Compare, (usize, usize))] =
            &[$((stringify!($file), $compare, ($compared, $listed))),*];

        $(
            #[test]
            fn $test() {
                files::walk(stringify!($file), $compare, ($compared, $listed));
            }
        )*
    };
}

golden! {
    bco_pair_trl024: with_reference::bco, 4 + 0 => golden_bco_of_trl_024_over_consecutive_steps;
    bco_trl024: unpaired::bco, 5 + 0 => golden_bco_equals_trl_over_the_steps_of_a_run;
    cringe_agent_reduction: cringe::reduced, 2 + 0 => golden_cringe_reduces_over_a_batch_as_the_reference_agent_does;
    cringe_loss: cringe::per_token, 11 + 2 => golden_cringe_equals_the_reference_per_token_and_in_gradient;
    d2o: ranked::d2o, 4 + 0 => golden_d2o_equals_the_formula;
    director_decode: director::decoding, 4 + 0 => golden_director_decodes_as_the_reference_does;
    director_loss: director::training, 4 + 0 => golden_director_equals_the_reference_in_both_heads;
    dpo_family_trl024: with_reference::trl_024, 36 + 0 => golden_the_dpo_family_of_trl_024_from_log_probabilities;
    dpo_family_trl_head: trl_head::family, 22 + 0 => golden_the_dpo_family_of_trl_head_from_logits;
    dpo_original: with_reference::original, 5 + 0 => golden_the_original_dpo_from_logits;
    grpo: policy::grpo, 13 + 0 => golden_grpo_advantages_and_losses;
    halos_pairwise: with_reference::halos, 4 + 0 => golden_the_pairwise_losses_of_halos_from_tokens;
    kl_estimators: kl::estimators, 4 + 0 => golden_kl_estimators_equal_those_of_three_libraries;
    kto_halos: unpaired::kto_halos, 4 + 0 => golden_kto_equals_halos_token_by_token;
    kto_trl024: unpaired::kto_trl, 6 + 0 => golden_kto_and_apo_zero_unpaired_equal_trl;
    npo: unpaired::npo, 5 + 0 => golden_npo_and_simnpo_equal_open_unlearning_from_logits;
    orpo_trl024: without_reference::orpo,
        2 + 0 => golden_orpo_equals_the_reference_with_the_likelihood_of_the_prompt_added;
    pairwise_cringe: without_reference::pairwise_cringe,
        3 + 0 => golden_pairwise_cringe_equals_the_formula_with_and_without_gradient_through_the_gate;
    policy_value_losses: policy::policy_and_value,
        12 + 0 => golden_policy_and_value_losses_of_openrlhf_verl_and_trlx;
    ppo_trl_legacy: ppo::legacy, 3 + 1 => golden_ppo_of_trl_equals_the_reference_but_is_never_multiplied_by_zero;
    ppo_update_step: ppo::update, 2 + 0 => golden_ppo_update_from_logits_and_a_value_head;
    reward_model_loss: scores::reward_models, 10 + 0 => golden_reward_models_equal_the_references;
    rloo: advantages::rloo, 9 + 0 => golden_rloo_advantages_and_losses;
    simpo_cpo: without_reference::simpo_cpo,
        10 + 0 => golden_simpo_alphapo_cpo_and_ipo_without_a_reference_equal_both_references;
    unlikelihood_repetition_parlai: repetition::parlai,
        4 + 0 => golden_unlikelihood_of_repetition_equals_the_dialogue_code;
    unlikelihood_reward: unlikelihood::by_reward,
        5 + 2 => golden_unlikelihood_equals_the_reference_except_where_its_clamp_kills_the_gradient;
    unlikelihood_sequence_fairseq: repetition::fairseq,
        3 + 0 => golden_unlikelihood_of_repetition_equals_the_original_code;
    unlikelihood_token_fairseq: unlikelihood::of_the_context,
        3 + 1 => golden_unlikelihood_of_the_context_equals_the_reference_given_its_candidates;
}
