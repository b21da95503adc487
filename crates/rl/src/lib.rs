//! The online loop: rollouts of the model's own completions and their selection.
