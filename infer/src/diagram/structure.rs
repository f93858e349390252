//! A network's stages, and the series-parallel structure of its layers: a fork with its join is a residual block or a
//! set of branches.

use std::collections::HashMap;

use super::{
    layer::{Cost, Kind, Layer, layers},
    text,
};
use models::graph::{Graph, Value};

/// The number of equal layers from which they are drawn as one repeated layer.
const FEW_LAYERS: usize = 4;

/// A network as stages of parts.
#[derive(Debug)]
pub(super) struct Structure {
    pub stages: Vec<Stage>,
    /// Whether each part reads the output of the previous one. If not, the parts are all layers, in the graph's order.
    pub chained: bool,
}

/// A row of the diagram.
#[derive(Debug)]
pub(super) struct Stage {
    /// torchvision's name, or the first and the last of several: `features.0–4`.
    pub name: String,
    pub parts: Vec<Part>,
    /// The shape of the output for one image.
    pub shape: Vec<usize>,
    pub cost: Cost,
}

/// A part of a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Layer(Layer),
    /// Branches that read the same value. Without a join of their own they end in the join of the enclosing branches.
    Branches {
        branches: Vec<Vec<Part>>,
        join: Option<Layer>,
    },
    /// The sum of a body and its shortcut, which may be empty.
    Residual {
        body: Vec<Part>,
        shortcut: Vec<Part>,
        join: Layer,
    },
    /// Consecutive equal parts.
    Repeat(Vec<Part>),
}

impl Structure {
    pub fn of(graph: &Graph) -> Self {
        let dag = Dag::new(graph);
        let series = dag.series(&dag.first, dag.layers.len());
        let chained = series.is_some();
        let parts = series.map_or_else(|| dag.layers.into_iter().map(Part::Layer).collect(), |(parts, _)| parts);
        let mut stages: Vec<Vec<Part>> = Vec::new();
        for part in parts {
            match stages.last_mut().filter(|stage| belongs(stage, &part)) {
                Some(stage) => stage.push(part),
                None => stages.push(vec![part]),
            }
        }
        Self { stages: stages.into_iter().map(|parts| Stage::new(parts, chained)).collect(), chained }
    }

    pub fn cost(&self) -> Cost {
        Cost::sum(self.stages.iter().map(|stage| stage.cost))
    }
}

impl Stage {
    fn new(parts: Vec<Part>, chained: bool) -> Self {
        let layers: Vec<&Layer> = parts.iter().flat_map(Part::layers).collect();
        let first = layers.first().map_or("", |layer| &layer.stage);
        let last = layers.last().map_or("", |layer| &layer.stage);
        Self {
            name: text::range(first, last),
            shape: layers.last().map(|layer| layer.shape.clone()).unwrap_or_default(),
            cost: Cost::sum(layers.iter().map(|layer| layer.cost)),
            parts: if chained { repeats(parts) } else { parts },
        }
    }
}

impl Part {
    /// Returns all layers of the part, a join after its branches.
    pub fn layers(&self) -> Vec<&Layer> {
        match self {
            Part::Layer(layer) => vec![layer],
            Part::Branches { branches, join } => branches.iter().flatten().flat_map(Part::layers).chain(join).collect(),
            Part::Residual { body, shortcut, join } => {
                body.iter().chain(shortcut).flat_map(Part::layers).chain([join]).collect()
            }
            Part::Repeat(parts) => parts.iter().flat_map(Part::layers).collect(),
        }
    }

    /// Returns the module's name: the common prefix of its layers' names.
    pub fn name(&self) -> String {
        if let Part::Repeat(parts) = self {
            let name = |part: Option<&Part>| part.map(Part::name).unwrap_or_default();
            return text::range(&name(parts.first()), &name(parts.last()));
        }
        let layers = self.layers();
        let mut names = layers.iter().filter(|layer| layer.cost.parameters > 0).map(|layer| layer.name.split('.'));
        let mut common: Vec<&str> = names.next().map(Iterator::collect).unwrap_or_default();
        for name in names {
            let same = common.iter().zip(name).take_while(|(a, b)| *a == b).count();
            common.truncate(same);
        }
        common.join(".")
    }
}

/// Whether a part continues a stage. In networks that only number their layers, each pooling ends a stage.
fn belongs(stage: &[Part], part: &Part) -> bool {
    let (Some(before), Some(layer)) =
        (stage.last().and_then(|part| part.layers().pop()), part.layers().first().copied())
    else {
        return false;
    };
    match (numbered(&before.stage), numbered(&layer.stage)) {
        (Some(a), Some(b)) => a == b && before.kind != Kind::Pooling,
        _ => before.stage == layer.stage,
    }
}

/// Returns the prefix before the number: `features` of `features.12`.
fn numbered(stage: &str) -> Option<&str> {
    let (name, number) = stage.rsplit_once('.')?;
    number.parse::<usize>().is_ok().then_some(name)
}

/// Merges runs of equal parts; short runs of layers are kept.
fn repeats(parts: Vec<Part>) -> Vec<Part> {
    let mut taken = Vec::new();
    for run in parts.chunk_by(|a, b| a == b) {
        let few = if matches!(run[0], Part::Layer(_)) { FEW_LAYERS } else { 1 };
        if run.len() > few {
            taken.push(Part::Repeat(run.to_vec()));
        } else {
            taken.extend_from_slice(run);
        }
    }
    taken
}

/// The layers and their readers. Layers are numbered in the graph's order; the number after the last is the exit, which
/// reads the network's output.
struct Dag {
    layers: Vec<Layer>,
    /// For each layer, the layers that read it, once per read.
    readers: Vec<Vec<usize>>,
    /// The layers that read the input.
    first: Vec<usize>,
    /// For each layer, the next one that all paths to the exit pass through (its immediate postdominator).
    next: Vec<usize>,
}

impl Dag {
    fn new(graph: &Graph) -> Self {
        let layers = layers(graph);
        let exit = layers.len();
        let mut by_value: HashMap<Value, Vec<usize>> = HashMap::new();
        for (index, layer) in layers.iter().enumerate() {
            for input in &layer.inputs {
                by_value.entry(*input).or_default().push(index);
            }
        }
        by_value.entry(graph.output).or_default().push(exit);
        let mut readers_of = |value: Value| by_value.remove(&value).unwrap_or_default();
        let first = readers_of(graph.input);
        let readers: Vec<Vec<usize>> = layers.iter().map(|layer| readers_of(layer.output)).collect();
        let mut dag = Self { layers, readers, first, next: vec![exit; exit + 1] };
        for index in (0..exit).rev() {
            dag.next[index] = dag.meeting(&dag.readers[index]);
        }
        dag
    }

    /// Returns the first layer that all paths from these layers pass through.
    fn meeting(&self, from: &[usize]) -> usize {
        let both = |mut a: usize, mut b: usize| {
            // Paths only lead to higher numbers.
            while a != b {
                if a < b { a = self.next[a] } else { b = self.next[b] }
            }
            a
        };
        from.iter().copied().reduce(both).unwrap_or(self.layers.len())
    }

    /// Returns the parts from the value that `readers` read up to the layer `end`, and how often `end` reads them;
    /// `None` if the layers are not series-parallel.
    fn series<'a>(&'a self, mut readers: &'a [usize], end: usize) -> Option<(Vec<Part>, usize)> {
        let mut parts = Vec::new();
        loop {
            match readers {
                [] => return None,
                [one] if *one == end => return Some((parts, 1)),
                [one] => {
                    let layer = self.layers.get(*one).filter(|layer| layer.inputs.len() == 1)?;
                    parts.push(Part::Layer(layer.clone()));
                    readers = &self.readers[*one];
                }
                fork => {
                    let join = self.meeting(fork);
                    let mut branches = Vec::new();
                    let mut read = 0;
                    for reader in fork.chunks(1) {
                        let (branch, times) = self.series(reader, join)?;
                        branches.push(branch);
                        read += times;
                    }
                    if join == end {
                        parts.push(Part::Branches { branches, join: None });
                        return Some((parts, read));
                    }
                    let layer = self.layers.get(join).filter(|layer| layer.inputs.len() == read)?;
                    parts.push(joined(branches, layer.clone()));
                    readers = &self.readers[join];
                }
            }
        }
    }
}

/// Combines branches with their join: a residual block if two branches are added of which one is shorter.
fn joined(mut branches: Vec<Vec<Part>>, join: Layer) -> Part {
    if let [a, b] = &mut branches[..]
        && join.label == "add"
        && a.len() != b.len()
    {
        let (body, shortcut) = if a.len() > b.len() { (a, b) } else { (b, a) };
        return Part::Residual { body: std::mem::take(body), shortcut: std::mem::take(shortcut), join };
    }
    Part::Branches { branches, join: Some(join) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagram::recorded::{graph, names};
    use models::graph::{Node, Op, Size};

    fn stage(network: &str, name: &str) -> Stage {
        let structure = Structure::of(&graph(network));
        assert!(structure.chained);
        let names: Vec<String> = structure.stages.iter().map(|stage| stage.name.clone()).collect();
        let mut stages = structure.stages.into_iter();
        stages.find(|stage| stage.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}"))
    }

    /// Formats the parts as a line of text: `(a b | c > join)`, `[body + shortcut]`, `2 × part`.
    fn text(parts: &[Part]) -> String {
        let layer = |layer: &Layer| [&[&*layer.label], &layer.notes[..]].concat().join(" ");
        let part = |part: &Part| match part {
            Part::Layer(one) => layer(one),
            Part::Branches { branches, join } => {
                let branches: Vec<String> = branches.iter().map(|branch| text(branch)).collect();
                let join = join.as_ref().map(|join| format!(" > {}", layer(join))).unwrap_or_default();
                format!("({}{join})", branches.join(" | "))
            }
            Part::Residual { body, shortcut, join } => {
                assert_eq!(join.label, "add");
                format!("[{} + {}]", text(body), text(shortcut))
            }
            Part::Repeat(parts) => format!("{} × {}", parts.len(), text(&parts[..1])),
        };
        parts.iter().map(part).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn residual_blocks_have_a_body_and_a_shortcut() {
        let layer2 = stage("resnet50", "layer2");
        assert_eq!(
            text(&layer2.parts),
            "[1×1 conv, 128 BN ReLU; 3×3 conv, 128, /2 BN ReLU; 1×1 conv, 512 BN + 1×1 conv, 512, /2 BN]; \
             3 × [1×1 conv, 128 BN ReLU; 3×3 conv, 128 BN ReLU; 1×1 conv, 512 BN + ]"
        );
        assert_eq!(layer2.parts.iter().map(Part::name).collect::<Vec<_>>(), ["layer2.0", "layer2.1–3"]);
        assert_eq!(layer2.shape, [512, 28, 28]);
        assert_eq!(
            text(&stage("resnet20", "layer2").parts),
            "[3×3 conv, 32, /2 BN ReLU; 3×3 conv, 32 BN + every other pixel, zeros]; \
             2 × [3×3 conv, 32 BN ReLU; 3×3 conv, 32 BN + ]"
        );
        assert!(text(&stage("resnext50_32x4d", "layer1").parts).contains("3×3 conv, 128, 32 groups BN ReLU"));
    }

    #[test]
    fn inception_modules_have_branches() {
        let module = stage("googlenet_2014", "inception3a");
        assert_eq!(
            text(&module.parts),
            "(1×1 conv, 64 ReLU | 1×1 conv, 96 ReLU; 3×3 conv, 128 ReLU | 1×1 conv, 16 ReLU; 5×5 conv, 32 ReLU | \
             3×3 max pool; 1×1 conv, 32 ReLU > concat, 256)"
        );
        assert_eq!(module.shape, [256, 28, 28]);
        assert_eq!(text(&stage("googlenet_2014", "norm1").parts), "LRN");
    }

    #[test]
    fn branches_nest() {
        assert_eq!(
            text(&stage("inception_v3", "Mixed_7b").parts),
            "(1×1 conv, 320 BN ReLU | 1×1 conv, 384 BN ReLU; (1×3 conv, 384 BN ReLU | 3×1 conv, 384 BN ReLU) | \
             1×1 conv, 448 BN ReLU; 3×3 conv, 384 BN ReLU; (1×3 conv, 384 BN ReLU | 3×1 conv, 384 BN ReLU) | \
             3×3 avg pool; 1×1 conv, 192 BN ReLU > concat, 2048)"
        );
    }

    #[test]
    fn numbered_layers_are_grouped_by_pooling() {
        let names = |network: &str| Structure::of(&graph(network)).stages.into_iter().map(|stage| stage.name);
        assert_eq!(
            names("vgg16").collect::<Vec<_>>(),
            [
                "features.0–4",
                "features.5–9",
                "features.10–16",
                "features.17–23",
                "features.24–30",
                "avgpool",
                "classifier.0–6"
            ]
        );
        assert_eq!(names("alexnet").count(), 5);
        assert_eq!(
            text(&stage("vgg16", "features.5–9").parts),
            "3×3 conv, 128 ReLU; 3×3 conv, 128 ReLU; 2×2 max pool, /2"
        );
        assert_eq!(text(&stage("vgg16", "classifier.0–6").parts), "fc 4096 ReLU; fc 4096 ReLU; fc 1000");
        assert_eq!(text(&stage("plain20", "layer2").parts), "3×3 conv, 32, /2 BN ReLU; 5 × 3×3 conv, 32 BN ReLU");
    }

    #[test]
    fn every_layer_of_every_architecture_is_drawn_once() {
        for name in names() {
            let graph = graph(&name);
            let structure = Structure::of(&graph);
            assert!(structure.chained, "{name}");
            let parts = structure.stages.iter().flat_map(|stage| &stage.parts);
            let cost = Cost::sum(parts.flat_map(Part::layers).map(|layer| layer.cost));
            assert_eq!(cost, structure.cost(), "{name}");
            let parameters: usize = graph.nodes.iter().map(|node| graph.parameters(node)).sum();
            let multiply_adds: u64 = graph.nodes.iter().map(|node| graph.multiply_adds(node)).sum();
            assert_eq!((cost.parameters, cost.multiply_adds), (parameters as u64, multiply_adds), "{name}");
        }
    }

    /// Builds a graph of ReLUs and sums from the inputs of each, where 0 is the network's input and `n` the output of
    /// the n-th node.
    fn sums(nodes: &[&[u64]]) -> Graph {
        let node = |(index, inputs): (usize, &&[u64])| Node {
            op: if inputs.len() == 1 { Op::Relu } else { Op::Add },
            inputs: inputs.to_vec(),
            output: index as u64 + 1,
            shape: vec![Size::PerImage(1), Size::Fixed(4)],
            stage: "all".to_string(),
        };
        let nodes: Vec<Node> = nodes.iter().enumerate().map(node).collect();
        Graph { input: 0, input_size: [1, 1], output: nodes.len() as u64, nodes, constants: Default::default() }
    }

    #[test]
    fn graphs_that_are_not_series_parallel_become_lists() {
        // A bridge between two branches.
        let bridge = sums(&[&[0], &[0], &[1, 2], &[1], &[3, 4]]);
        // A layer without readers.
        let dead = sums(&[&[0], &[0]]);
        // The output is also read.
        let mut inner = sums(&[&[0], &[1]]);
        inner.output = 1;
        for graph in [bridge, dead, inner] {
            let structure = Structure::of(&graph);
            assert!(!structure.chained);
            assert_eq!(structure.stages.iter().flat_map(|stage| &stage.parts).count(), graph.nodes.len());
        }
        let empty = Graph { nodes: Vec::new(), output: 0, ..sums(&[]) };
        assert!(Structure::of(&empty).chained);
        // The same value twice.
        let twice = Structure::of(&sums(&[&[0], &[1, 1]]));
        assert_eq!(text(&twice.stages[0].parts), "ReLU; ( |  > add)");
    }
}
