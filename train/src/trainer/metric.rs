//! What Burn's dashboard plots: numbers that the loop has read already.

use std::sync::Arc;

use burn::tensor::TensorReadError;
use burn_train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
    state::{FormatOptions, NumericMetricState},
};

use crate::evaluation::MetricSums;

/// Loss, top-1 or top-5 over an epoch.
#[derive(Clone)]
pub struct Mean {
    kind: Kind,
    state: NumericMetricState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Loss,
    Top1,
    Top5,
}

impl Mean {
    pub fn new(kind: Kind) -> Self {
        Self { kind, state: NumericMetricState::new() }
    }

    fn format(&self) -> FormatOptions {
        let options = FormatOptions::new(self.name()).precision(2);
        if self.kind == Kind::Loss { options } else { options.unit("%") }
    }
}

impl Adaptor<MetricSums> for MetricSums {
    fn adapt(&self) -> MetricSums {
        *self
    }
}

impl Metric for Mean {
    type Input = MetricSums;

    fn name(&self) -> MetricName {
        let name = match self.kind {
            Kind::Loss => "Loss",
            Kind::Top1 => "Top-1",
            Kind::Top5 => "Top-5",
        };
        Arc::new(name.to_string())
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = (self.kind != Kind::Loss).then(|| "%".to_string());
        NumericAttributes { unit, higher_is_better: self.kind != Kind::Loss }.into()
    }

    fn update(&mut self, reading: &MetricSums, _metadata: &MetricMetadata) -> Result<SerializedEntry, TensorReadError> {
        let score = reading.score();
        let value = match self.kind {
            Kind::Loss => score.loss,
            Kind::Top1 => score.top1,
            Kind::Top5 => score.top5,
        };
        self.state.update(value, reading.images as usize);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for Mean {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}
