//! Losses over the policy's own samples: rewards, advantages and the pull to the reference.

pub mod kl;
