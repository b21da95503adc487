//! The offline loop: optimiser, schedules, accumulation, checkpoints.
