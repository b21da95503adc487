//! The list of losses, and what follows from being on it.

/// Makes the enum [`Loss`](super::Loss) from lines `Type => file`.
///
/// Being listed gives a loss its manifest form, range errors, the contract suite and the benchmark.
macro_rules! registry {
    ($($loss:ident => $name:ident,)+) => {
        $(pub use $name::$loss;)+

        /// Every loss, in its manifest form: a map of one key, `{ cringe: { alpha: 1.0, k: 5 } }`.
        ///
        /// ```
        /// use unsay_losses::Loss;
        ///
        /// let loss: Loss = serde_json::from_str(r#"{ "cringe": { "alpha": 1.0, "k": 5 } }"#).unwrap();
        /// assert!(loss.check().is_ok());
        /// let typo = serde_json::from_str::<Loss>(r#"{ "cringe": { "alpha": 1.0, "k": 5, "beta": 1 } }"#);
        /// assert!(typo.unwrap_err().to_string().starts_with("unknown field `beta`"));
        /// ```
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Loss {
            $(
                #[doc = concat!("See [`", stringify!($loss), "`].")]
                $loss($loss),
            )+
        }

        impl Loss {
            /// The names of all losses.
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];

            /// Checks every parameter; the first outside its range is the error.
            /// [`TokenLoss::problems`] gives all of them.
            ///
            /// **Errors**: [`Error::Range`] with name, value and range.
            pub fn check(&self) -> Result<()> {
                self.problems().into_iter().next().map_or(Ok(()), Err)
            }
        }

        impl TokenLoss for Loss {
            fn name(&self) -> &'static str {
                match self { $(Loss::$loss(loss) => loss.name(),)+ }
            }

            fn summary(&self) -> &'static str {
                match self { $(Loss::$loss(loss) => loss.summary(),)+ }
            }

            fn problems(&self) -> Vec<Error> {
                match self { $(Loss::$loss(loss) => loss.problems(),)+ }
            }

            fn needs(&self) -> Needs {
                match self { $(Loss::$loss(loss) => loss.needs(),)+ }
            }

            fn draws_per_row(&self) -> usize {
                match self { $(Loss::$loss(loss) => loss.draws_per_row(),)+ }
            }

            fn rows_trained(&self, counts: &TokenCounts) -> f64 {
                match self { $(Loss::$loss(loss) => loss.rows_trained(counts),)+ }
            }

            fn evaluate(&self, stats: &TokenStats, rows: &TokenRows, counts: &TokenCounts, draws: Option<&Tensor>) -> Result<LossValue> {
                match self { $(Loss::$loss(loss) => loss.evaluate(stats, rows, counts, draws),)+ }
            }

            /// The samples of every loss, in the order of [`Loss::NAMES`].
            fn samples() -> Vec<Self> {
                let mut all = Vec::new();
                $(all.extend($loss::samples().into_iter().map(Loss::$loss));)+
                all
            }
        }
    };
}

pub(super) use registry;
