//! Forward hooks: each network announces the output of its named stages.

use burn::tensor::Tensor;

/// Observes the output of each named stage as a network runs, and may replace it.
///
/// Stage names are torchvision's module names (`layer3`, `inception4a`, `features.12`). Feature extraction, the
/// auxiliary heads, summaries, golden comparisons and explanations are all hooks; a plain forward pass uses `()`.
pub trait ForwardHook {
    /// Called with the output `[n, c, h, w]` of stage `name`; what it returns flows on.
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4>;

    /// Whether stage `name` must be announced; one that need not may be computed together with the next.
    fn observes(&self, _name: &str) -> bool {
        true
    }
}

/// No hook: every output is passed on unchanged.
impl ForwardHook for () {
    fn on_output(&mut self, _name: &str, output: Tensor<4>) -> Tensor<4> {
        output
    }

    fn observes(&self, _name: &str) -> bool {
        false
    }
}

/// A closure that looks at each stage.
impl<F: FnMut(&str, &Tensor<4>)> ForwardHook for F {
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        self(name, &output);
        output
    }
}

/// Keeps the outputs of the stages asked for.
#[derive(Debug)]
pub struct Capture<'a> {
    wanted: &'a [&'a str],
    found: Vec<(String, Tensor<4>)>,
}

impl<'a> Capture<'a> {
    /// Will keep the outputs of the stages named in `wanted`.
    pub fn new(wanted: &'a [&'a str]) -> Self {
        Self { wanted, found: Vec::new() }
    }

    /// The output `[n, c, h, w]` of stage `name`, if it was wanted and ran.
    pub fn take(&mut self, name: &str) -> Option<Tensor<4>> {
        let at = self.found.iter().position(|(found, _)| found == name)?;
        Some(self.found.swap_remove(at).1)
    }
}

impl ForwardHook for Capture<'_> {
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        if self.observes(name) {
            self.found.push((name.to_string(), output.clone()));
        }
        output
    }

    fn observes(&self, name: &str) -> bool {
        self.wanted.contains(&name)
    }
}
