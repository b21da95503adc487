//! The list of losses of a family, and what follows from being on it.

/// Makes a family's enum `Loss` from its trait and lines `Type => file`.
///
/// Being listed gives a loss its manifest form, range errors, its line in the table, the contract suite and the
/// benchmark. The enum is read as the family's trait: `loss.name()`, `loss.problems()`.
macro_rules! registry {
    ($(#[$doc:meta])* dyn $family:ident: $($loss:ident => $file:ident,)+) => {
        $(pub use $file::$loss;)+

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Loss {
            $(
                #[doc = concat!("See [`", stringify!($loss), "`].")]
                $loss($loss),
            )+
        }

        impl Loss {
            /// The names of all losses of the family, in alphabetical order.
            pub const NAMES: &[&str] = &[$(stringify!($file)),+];

            /// The samples of every loss, in the order of [`Loss::NAMES`]: settings that between them use every
            /// switch, which the contract suite and the benchmark run.
            pub fn samples() -> Vec<Self> {
                let mut all = Vec::new();
                $(all.extend(<$loss as $family>::samples().into_iter().map(Loss::$loss));)+
                all
            }
        }

        impl std::ops::Deref for Loss {
            type Target = dyn $family;

            fn deref(&self) -> &Self::Target {
                match self { $(Loss::$loss(loss) => loss,)+ }
            }
        }
    };
}

pub(crate) use registry;
