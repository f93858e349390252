//! The layers of a graph as papers count them: norms and activations belong to the preceding convolution, local
//! response normalization is one layer, and flattening is none.

use std::collections::{BTreeSet, HashMap, HashSet};

use models::graph::{Graph, Node, Op, Value};

/// The kind of a layer, which determines its color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Convolution,
    Pooling,
    Norm,
    Linear,
    Join,
    Other,
}

/// Parameters and multiply-adds of layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub parameters: u64,
    /// Multiply-adds for one image.
    pub multiply_adds: u64,
}

/// A layer. Two layers are equal if they are drawn alike.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub kind: Kind,
    /// The label, as papers write it: `3×3 conv, 64, /2`.
    pub label: String,
    /// The operations that follow directly: `BN`, `ReLU`.
    pub notes: Vec<&'static str>,
    /// The module's name if it has parameters (`layer1.0.conv1`), else its stage's.
    pub name: String,
    /// The stage in which the layer begins.
    pub stage: String,
    /// The shape of the output for one image, without the batch axis.
    pub shape: Vec<usize>,
    pub cost: Cost,
    /// The inputs, without constants.
    pub inputs: Vec<Value>,
    pub output: Value,
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.cost) == (other.kind, other.cost)
            && (&self.label, &self.notes, &self.shape) == (&other.label, &other.notes, &other.shape)
    }
}

impl Cost {
    pub fn sum(costs: impl Iterator<Item = Cost>) -> Self {
        costs.fold(Self::default(), |a, b| a.and(b))
    }

    pub fn and(self, other: Self) -> Self {
        Self { parameters: self.parameters + other.parameters, multiply_adds: self.multiply_adds + other.multiply_adds }
    }

    fn of(graph: &Graph, node: &Node) -> Self {
        Self { parameters: graph.parameters(node) as u64, multiply_adds: graph.multiply_adds(node) }
    }
}

/// Returns the layers of a graph, in its order.
pub(super) fn layers(graph: &Graph) -> Vec<Layer> {
    let mut uses: HashMap<Value, usize> = HashMap::from([(graph.output, 1)]);
    for input in graph.nodes.iter().flat_map(|node| &node.inputs) {
        *uses.entry(*input).or_default() += 1;
    }
    let responses = responses(graph, &uses);
    let inner: HashSet<usize> = responses.values().flat_map(|response| &response.nodes).copied().collect();

    let mut constants: HashSet<Value> = graph.constants.keys().copied().collect();
    let mut layers: Vec<Layer> = Vec::new();
    let mut writers: HashMap<Value, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if inner.contains(&index) {
            continue;
        }
        let inputs: Vec<Value> = node.inputs.iter().copied().filter(|input| !constants.contains(input)).collect();
        let before = match inputs[..] {
            // Zeros, and what depends only on constants, are constants.
            [] => {
                constants.insert(node.output);
                continue;
            }
            [input] if uses[&input] == 1 => writers.get(&input).copied(),
            _ => None,
        };
        if let Some(before) = before.filter(|&before| layers[before].absorb(graph, node)) {
            writers.insert(node.output, before);
            continue;
        }
        let mut layer = Layer::new(graph, node, inputs);
        if let Some(response) = responses.get(&index) {
            layer.kind = Kind::Norm;
            layer.label = "LRN".to_string();
            layer.inputs = vec![response.input];
            layer.cost = Cost::sum(response.nodes.iter().map(|&node| Cost::of(graph, &graph.nodes[node])));
        }
        writers.insert(node.output, layers.len());
        layers.push(layer);
    }
    layers
}

impl Layer {
    fn new(graph: &Graph, node: &Node, inputs: Vec<Value>) -> Self {
        let (kind, label) = describe(graph, node, inputs.len());
        let constants = node.inputs.iter().filter_map(|input| graph.constants.get(input));
        let module = constants.filter_map(|constant| constant.name.strip_suffix(".weight")).next();
        Self {
            kind,
            label,
            notes: Vec::new(),
            name: module.unwrap_or(&node.stage).to_string(),
            stage: node.stage.clone(),
            shape: sizes(node),
            cost: Cost::of(graph, node),
            inputs,
            output: node.output,
        }
    }

    /// Merges a node into this layer if it is the only reader of the layer's output and not a layer of its own.
    fn absorb(&mut self, graph: &Graph, node: &Node) -> bool {
        match &node.op {
            Op::BatchNorm { .. } => self.notes.push("BN"),
            Op::Relu => self.notes.push("ReLU"),
            // Flattening: the shape before it is more informative.
            Op::Reshape => {}
            // The shortcut without parameters (option A): subsampling, then zero-padded channels.
            Op::Concat { .. } if self.kind == Kind::Other => {
                self.label += ", zeros";
                self.shape = sizes(node);
            }
            // A renormalized input.
            Op::Add if self.label == "scale" => self.label += " and shift",
            _ => return false,
        }
        self.cost = self.cost.and(Cost::of(graph, node));
        self.output = node.output;
        true
    }
}

/// Returns the output's shape for one image.
fn sizes(node: &Node) -> Vec<usize> {
    node.shape.iter().skip(1).map(|size| size.of_one()).collect()
}

/// Returns the kind and the label of a node with this number of non-constant inputs.
fn describe(graph: &Graph, node: &Node, inputs: usize) -> (Kind, String) {
    let channels = node.shape.get(1).map_or(0, |size| size.of_one());
    let other = |label: &str| (Kind::Other, label.to_string());
    match &node.op {
        Op::Conv2d { stride, dilation, groups, .. } => {
            let weight = node.inputs.get(1).and_then(|weight| graph.constants.get(weight));
            let kernel = weight.map_or(String::new(), |weight| window(weight.shape.get(2..).unwrap_or_default()) + " ");
            let mut label = format!("{kernel}conv, {channels}{}", strides(stride));
            if *groups > 1 {
                label += &format!(", {groups} groups");
            }
            if *dilation != [1, 1] {
                label += &format!(", dilated {}", window(dilation));
            }
            (Kind::Convolution, label)
        }
        Op::MaxPool2d { kernel, stride, .. } => {
            (Kind::Pooling, format!("{} max pool{}", window(kernel), strides(stride)))
        }
        Op::AvgPool { kernel, stride, .. } => {
            (Kind::Pooling, format!("{} avg pool{}", window(kernel), strides(stride)))
        }
        Op::AdaptiveAvgPool2d { output: [1, 1] } => (Kind::Pooling, "avg pool".to_string()),
        Op::AdaptiveAvgPool2d { output } => (Kind::Pooling, format!("avg pool to {}", window(output))),
        Op::BatchNorm { .. } => (Kind::Norm, "BN".to_string()),
        Op::Linear => (Kind::Linear, format!("fc {channels}")),
        Op::Add if inputs > 1 => (Kind::Join, "add".to_string()),
        Op::Mul if inputs > 1 => (Kind::Join, "multiply".to_string()),
        Op::Div if inputs > 1 => (Kind::Join, "divide".to_string()),
        Op::Concat { .. } if inputs > 1 => (Kind::Join, format!("concat, {channels}")),
        Op::Slice { ranges } => match ranges.iter().map(|range| range.2).max() {
            Some(2) => other("every other pixel"),
            Some(step @ 3..) => other(&format!("every {step}th pixel")),
            _ => other("slice"),
        },
        Op::Relu => other("ReLU"),
        Op::Add | Op::AddScalar(_) => other("shift"),
        Op::Mul | Op::MulScalar(_) | Op::Div => other("scale"),
        Op::PowScalar(_) => other("power"),
        Op::Concat { .. } | Op::Zeros => other("zeros"),
        Op::Reshape => other("reshape"),
        Op::Transpose { .. } => other("transpose"),
    }
}

/// Formats a kernel size as `3×3`.
fn window(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

/// Formats the stride as `, /2`, or as nothing for stride 1.
fn strides(strides: &[usize]) -> String {
    match strides {
        _ if strides.iter().all(|&stride| stride == 1) => String::new(),
        [stride, rest @ ..] if rest.iter().all(|other| other == stride) => format!(", /{stride}"),
        _ => format!(", /{}", window(strides)),
    }
}

/// A local response normalization: its nodes and its input.
struct Response {
    nodes: BTreeSet<usize>,
    input: Value,
}

/// Returns the local response normalizations of a graph by their last node.
fn responses(graph: &Graph, uses: &HashMap<Value, usize>) -> HashMap<usize, Response> {
    let writers: HashMap<Value, usize> =
        graph.nodes.iter().enumerate().map(|(index, node)| (node.output, index)).collect();
    let response = |end: usize| {
        let [input, mut value] = graph.nodes[end].inputs[..] else { return None };
        let mut nodes = BTreeSet::new();
        let mut powers = 0;
        // Walks from the divisor back to the square of the dividend.
        loop {
            let writer = *writers.get(&value)?;
            let node = &graph.nodes[writer];
            if uses[&value] != 1 {
                return None;
            }
            nodes.insert(writer);
            match (&node.op, &node.inputs[..]) {
                (Op::Mul, [a, b]) if [*a, *b] == [input; 2] => break,
                (Op::PowScalar(_), _) => powers += 1,
                (Op::Reshape | Op::Transpose { .. } | Op::AvgPool { .. } | Op::MulScalar(_) | Op::AddScalar(_), _) => {}
                _ => return None,
            }
            value = *node.inputs.first()?;
        }
        (powers == 1).then_some(Response { nodes, input })
    };
    let ends = graph.nodes.iter().enumerate().filter(|(_, node)| node.op == Op::Div);
    ends.filter_map(|(end, _)| Some((end, response(end)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagram::recorded::graph;

    #[test]
    fn norms_and_activations_merge_into_their_convolution() {
        let layers = layers(&graph("resnet18"));
        let Layer { kind, label, notes, name, shape, cost, .. } = &layers[0];
        assert_eq!((*kind, &label[..], &notes[..]), (Kind::Convolution, "7×7 conv, 64, /2", &["BN", "ReLU"][..]));
        assert_eq!((&name[..], &shape[..]), ("conv1", &[64, 112, 112][..]));
        assert_eq!((cost.parameters, cost.multiply_adds), (64 * 3 * 49 + 128, 64 * 112 * 112 * 3 * 49));
        let labels: Vec<&str> = layers.iter().rev().take(2).map(|layer| &layer.label[..]).collect();
        assert_eq!(labels, ["fc 1000", "avg pool"]);
    }

    #[test]
    fn local_response_normalization_is_one_layer() {
        let layers = layers(&graph("googlenet_2014"));
        let responses: Vec<&Layer> = layers.iter().filter(|layer| layer.kind == Kind::Norm).collect();
        assert_eq!(responses.iter().map(|layer| &layer.label[..]).collect::<Vec<_>>(), ["LRN", "LRN"]);
        assert_eq!(responses[0].inputs, [layers[1].output]);
        assert!(layers.iter().all(|layer| layer.kind != Kind::Other));
    }

    #[test]
    fn labels_show_kernel_and_stride() {
        assert_eq!(window(&[1, 7]), "1×7");
        assert_eq!([strides(&[1, 1]), strides(&[2, 2]), strides(&[2, 1])], ["", ", /2", ", /2×1"]);
    }
}
