//! Stopping on request: the first Ctrl-C (or SIGTERM) asks, the second insists.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

/// Set when the user wants to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM. A second signal ends the process at once, which is safe: what is not
    /// finished is not in the store.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        // Without a handler a file at the size limit of the shell ends the process; with one the write fails and says so.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot listen for signals")?;
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop.0))
                .context("cannot listen for signals")?;
            signal_hook::flag::register(signal, Arc::clone(&stop.0)).context("cannot listen for signals")?;
        }
        Ok(stop)
    }

    /// True when the user wants to stop.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
