//! What goes wrong ends the run with a text: a benchmark has nobody to recover for.

/// Any error.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A text as an error.
pub fn fault(text: impl Into<String>) -> Fault {
    text.into().into()
}
