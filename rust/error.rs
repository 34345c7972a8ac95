//! What can go wrong: one enum, for every caller. Nothing is modified before one of these is returned.

use std::fmt;

/// Why something was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The registry has no rule of that name.
    UnknownRule(String),
    /// The rule has no hyperparameter of that name.
    UnknownHyperparameter {
        /// The rule.
        rule: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A hyperparameter outside its range, or not a number.
    OutOfRange {
        /// Which one.
        name: String,
        /// What was given.
        got: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// An array whose elements are of a type that cannot be used there.
    Dtype(String),
    /// An array whose shape is not the one needed, or names that do not match.
    Shape(String),
    /// An array that cannot be used where it lies: read-only, unaligned, broadcast, overlapping another, moved.
    Memory(String),
    /// Gradients that are not finite, under `nonfinite="raise"`.
    NotFinite(String),
    /// An address that is null where there must be something.
    Null(String),
    /// A name that stands for nothing, or a value that was never set.
    Name(String),
    /// Sizes whose product does not fit, or that reach beyond the address space.
    Size(String),
    /// Something that another thread is in the middle of.
    Busy(String),
    /// So many bytes that could not be had.
    NoMemory(usize),
    /// A bug of ravine's.
    Internal(String),
    /// An environment variable that does not say what it may.
    Environment(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownRule(name) => {
                let known: Vec<_> = crate::rules::REGISTRY.iter().map(|entry| entry.name).collect();
                write!(f, "unknown rule {name:?}; expected one of {}", known.join(", "))
            }
            Self::UnknownHyperparameter { rule, name } => write!(f, "rule {rule:?} has no hyperparameter {name:?}"),
            Self::OutOfRange { name, got, expected } => write!(f, "{name}: expected {expected}, got {got:?}"),
            Self::NoMemory(bytes) => write!(f, "{bytes} bytes of memory could not be had"),
            Self::Internal(text) => write!(f, "a bug in ravine, please report it: {text}"),
            Self::Dtype(text) | Self::Shape(text) | Self::Memory(text) | Self::NotFinite(text) => f.write_str(text),
            Self::Null(text) | Self::Name(text) | Self::Size(text) | Self::Busy(text) => f.write_str(text),
            Self::Environment(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
