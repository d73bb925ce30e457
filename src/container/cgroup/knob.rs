//! A file of a control group, and what is to be written there.

/// One setting. Kernels and schedulers name some differently: the first alternative whose file is there
/// counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knob {
    pub alternatives: Vec<(&'static str, String)>,
    /// Follows from another setting and was not asked for itself: left out where there is no such file.
    pub is_implied: bool,
}

impl Knob {
    pub fn new(file: &'static str, value: impl ToString) -> Self {
        Self { alternatives: vec![(file, value.to_string())], is_implied: false }
    }

    pub fn implied(file: &'static str, value: impl ToString) -> Self {
        Self { is_implied: true, ..Self::new(file, value) }
    }

    pub fn or(mut self, file: &'static str, value: impl ToString) -> Self {
        self.alternatives.push((file, value.to_string()));
        self
    }
}
