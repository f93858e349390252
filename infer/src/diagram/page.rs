//! The page: a row for each stage with its name, layers and numbers.

use super::{
    layer::{Cost, Kind},
    layout::{BASE, Block, Column, Item, LINE, Rect, Style, Text, column_width, facts},
    structure::{Part, Stage, Structure},
    text,
};
use models::graph::Graph;
use runtime::progress::thousands;

/// The outer margin.
const MARGIN: f64 = 20.0;
/// The padding within a stage.
const PADDING: f64 = 12.0;
/// The gap between stages.
const APART: f64 = 16.0;
/// The gap between columns of numbers.
const COLUMNS: f64 = 24.0;
/// The minimum height of a stage.
const LOWEST: f64 = 26.0;
/// The maximum width of stage names; longer names are cut.
const LONGEST_NAME: f64 = 180.0;
/// The minimum width of a column of numbers, for the bars of shares.
const NARROWEST: f64 = 72.0;
/// The height of the boxes of the input and the classes.
const END: f64 = 26.0;
const HEADS: [&str; 3] = ["output", "parameters", "multiply-adds"];

/// A drawing.
pub(super) struct Page {
    pub width: f64,
    pub height: f64,
    pub title: String,
    /// A text description of the drawing.
    pub description: String,
    pub items: Vec<Item>,
}

/// The positions of the columns.
struct Columns {
    /// The x coordinate of the layers' axis.
    axis: f64,
    /// The width of the boxes of the input and the classes.
    end: f64,
    /// The right ends of the columns of numbers, and their widths.
    numbers: [(f64, f64); 3],
    /// The right end of the content of stages.
    right: f64,
}

impl Page {
    pub fn of(title: &str, graph: &Graph) -> Self {
        let structure = Structure::of(graph);
        let total = structure.cost();
        let width = widest(structure.stages.iter().map(|stage| column_width(&stage.parts, false)));
        let column = Column { width, narrow: false, chained: structure.chained };
        let blocks: Vec<Block> = structure.stages.iter().map(|stage| column.series(&stage.parts)).collect();
        let [height, width] = graph.input_size;
        let input = format!("input {}", text::shape(&[3, height, width]));
        let classes = structure.stages.last().and_then(|stage| stage.shape.last().copied());
        let classes = classes.map_or("output".to_string(), |classes| format!("{classes} classes"));
        let columns = Columns::of(&structure, &blocks, [&input, &classes]);
        let width = columns.right + PADDING + MARGIN;
        let mut page = Page {
            width,
            height: MARGIN,
            title: title.to_string(),
            description: describe(&structure, &input, &classes),
            items: Vec::new(),
        };
        page.head(&structure, width);
        let middle = page.height + END / 2.0;
        for (head, (end, _)) in HEADS.iter().zip(columns.numbers) {
            page.items.push(Item::Text(Text::end(end, middle + BASE, Style::Muted, *head)));
        }
        let mut line = page.end(&columns, input);
        for (stage, block) in structure.stages.iter().zip(blocks) {
            page.height += APART;
            line = page.stage(stage, block, &columns, total, structure.chained.then_some(line));
        }
        page.height += APART;
        if structure.chained {
            page.items.push(Item::down(columns.axis, line, page.height, true));
        }
        page.total(&columns, total);
        page.end(&columns, classes);
        page.height += MARGIN;
        page
    }

    /// Draws the title, and a legend of the colors in use.
    fn head(&mut self, structure: &Structure, width: f64) {
        let room = (width - 2.0 * MARGIN) / 1.06;
        let title = text::shorten(&self.title, Style::Title.size(), room);
        self.items.push(Item::Text(Text::start(MARGIN, self.height + 14.0, Style::Title, title)));
        self.height += 34.0;
        let layers: Vec<_> = structure.stages.iter().flat_map(|stage| &stage.parts).flat_map(Part::layers).collect();
        let kinds = [
            (Kind::Convolution, "convolution"),
            (Kind::Pooling, "pooling"),
            (Kind::Norm, "normalization"),
            (Kind::Linear, "fully connected"),
            (Kind::Join, "join"),
            (Kind::Other, "other"),
        ];
        let mut x = MARGIN;
        for (kind, name) in kinds.into_iter().filter(|(kind, _)| layers.iter().any(|layer| layer.kind == *kind)) {
            let wide = 18.0 + Style::Muted.width(name);
            if x > MARGIN && x + wide > width - MARGIN {
                (x, self.height) = (MARGIN, self.height + LINE);
            }
            let at = Rect { x, y: self.height, width: 12.0, height: 12.0 };
            self.items.push(Item::Swatch { at, kind });
            self.items.push(Item::Text(Text::start(x + 18.0, self.height + 10.3, Style::Muted, name)));
            x += wide + 16.0;
        }
        self.height += LINE + 12.0;
    }

    /// Draws a box for the input or the classes. Returns its bottom.
    fn end(&mut self, columns: &Columns, text: String) -> f64 {
        let at = Rect { x: columns.axis - columns.end / 2.0, y: self.height, width: columns.end, height: END };
        let text = Text::middle(columns.axis, self.height + END / 2.0 + BASE, Style::Plain, text);
        self.items.push(Item::End { at, text });
        self.height += END;
        self.height
    }

    /// Draws the row of a stage, with a line from the row above. Returns the bottom of its layers.
    fn stage(&mut self, stage: &Stage, block: Block, columns: &Columns, total: Cost, line: Option<f64>) -> f64 {
        let top = self.height;
        let height = block.height.max(LOWEST) + 2.0 * PADDING;
        let begin = top + (height - block.height) / 2.0;
        let end = begin + block.height;
        let middle = top + height / 2.0 + BASE;
        let ground = Rect { x: MARGIN, y: top, width: self.width - 2.0 * MARGIN, height };
        let shares =
            [share(stage.cost.parameters, total.parameters), share(stage.cost.multiply_adds, total.multiply_adds)];
        let [output, mut parameters, mut multiply_adds] = facts(&stage.shape, stage.cost);
        parameters += &format!(" ({:.1} %)", 100.0 * shares[0]);
        multiply_adds += &format!(" ({:.1} %)", 100.0 * shares[1]);
        self.items.push(Item::Open([stage.name.clone(), output, parameters, multiply_adds].join("\n")));
        self.items.push(Item::Panel(ground));
        if let Some(line) = line {
            self.items.push(Item::down(columns.axis, line, begin, !block.open));
        }
        self.items.push(Item::Text(Text::start(MARGIN + PADDING, middle, Style::Strong, name(stage))));
        self.items.extend(block.moved(columns.axis, begin));
        for (number, (end, _)) in numbers(&stage.shape, stage.cost).into_iter().zip(columns.numbers) {
            self.items.push(Item::Text(Text::end(end, middle, Style::Plain, number)));
        }
        let shares = shares.into_iter().zip(&columns.numbers[1..]);
        for (share, (end, width)) in shares.filter(|(share, _)| *share > 0.0) {
            let at = Rect { x: end - width, y: middle + 7.0, width: *width, height: 4.0 };
            self.items.push(Item::Share { at, share });
        }
        self.items.push(Item::Close);
        self.height += height;
        end
    }

    /// Draws the totals, beside the box of the classes.
    fn total(&mut self, columns: &Columns, total: Cost) {
        let base = self.height + END / 2.0 + BASE;
        let [_, parameters, multiply_adds] = numbers(&[], total);
        for (text, (end, _)) in ["total".to_string(), parameters, multiply_adds].into_iter().zip(columns.numbers) {
            self.items.push(Item::Text(Text::end(end, base, Style::Strong, text)));
        }
    }
}

impl Columns {
    fn of(structure: &Structure, blocks: &[Block], ends: [&String; 2]) -> Self {
        let end = widest(ends.map(|text| Style::Plain.width(text))) + END;
        let names = widest(structure.stages.iter().map(|stage| Style::Strong.width(&name(stage))));
        let left = widest(blocks.iter().map(|block| block.left)).max(end / 2.0);
        let layers = widest(blocks.iter().map(|block| block.right)).max(end / 2.0);
        let axis = MARGIN + PADDING + names + COLUMNS + left;
        let mut right = axis + layers;
        let stages = structure.stages.iter().map(|stage| numbers(&stage.shape, stage.cost));
        let rows: Vec<[String; 3]> = stages.chain([numbers(&[], structure.cost())]).collect();
        let numbers = [0, 1, 2].map(|column| {
            let texts = widest(rows.iter().map(|row| Style::Strong.width(&row[column])));
            let width = texts.max(Style::Plain.width(HEADS[column])).max(NARROWEST);
            right += COLUMNS + width;
            (right, width)
        });
        Self { axis, end, numbers, right }
    }
}

fn widest(widths: impl IntoIterator<Item = f64>) -> f64 {
    widths.into_iter().fold(0.0, f64::max)
}

/// Returns the display name.
fn name(stage: &Stage) -> String {
    text::shorten(&stage.name, Style::Strong.size(), LONGEST_NAME)
}

/// Draws a row of numbers.
fn numbers(shape: &[usize], cost: Cost) -> [String; 3] {
    let count = |count: u64| if count == 0 { "–".to_string() } else { text::short(count) };
    [text::shape(shape), count(cost.parameters), count(cost.multiply_adds)]
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A text description of the drawing.
fn describe(structure: &Structure, input: &str, classes: &str) -> String {
    let total = structure.cost();
    let mut lines = vec![format!(
        "A diagram of a network from {input} to {classes}: {} parameters, {} multiply-adds for an image.",
        thousands(total.parameters),
        thousands(total.multiply_adds)
    )];
    let stage = |stage: &Stage| format!("{}: {}.", stage.name, facts(&stage.shape, stage.cost).join(", "));
    lines.extend(structure.stages.iter().map(stage));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagram::layout::{Anchor, SUM},
        diagram::recorded::{graph, names},
    };

    /// Returns the bounding box of a text.
    fn around(text: &Text) -> Rect {
        let (width, height) = (text.width(), text.style.size());
        let left = match text.anchor {
            Anchor::Start => text.x,
            Anchor::Middle => text.x - width / 2.0,
            Anchor::End => text.x - width,
        };
        Rect { x: left, y: text.y - 0.8 * height, width, height }
    }

    fn holds(outer: &Rect, inner: &Rect) -> bool {
        outer.x <= inner.x
            && outer.y <= inner.y
            && inner.x + inner.width <= outer.x + outer.width
            && inner.y + inner.height <= outer.y + outer.height
    }

    fn overlap(a: &Rect, b: &Rect) -> bool {
        a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
    }

    fn assert_tidy(page: &Page) {
        let whole = Rect { x: 0.0, y: 0.0, width: page.width, height: page.height };
        let mut solid: Vec<(Rect, String)> = Vec::new();
        for item in &page.items {
            match item {
                Item::Box { at, texts, about, .. } => {
                    let texts: Vec<Rect> = texts.iter().map(around).collect();
                    assert!(texts.iter().all(|text| holds(at, text)), "{}: {about} leaves its box", page.title);
                    assert!(texts.windows(2).all(|pair| !overlap(&pair[0], &pair[1])), "{}: {about}", page.title);
                    solid.push((*at, about.clone()));
                }
                Item::End { at, text } => {
                    assert!(holds(at, &around(text)), "{}: {}", page.title, text.text);
                    solid.push((*at, text.text.clone()));
                }
                Item::Sum { x, y, about } => {
                    let at = Rect { x: x - SUM, y: y - SUM, width: 2.0 * SUM, height: 2.0 * SUM };
                    solid.push((at, about.clone()));
                }
                Item::Text(text) => solid.push((around(text), text.text.clone())),
                Item::Swatch { at, .. } | Item::Share { at, .. } => solid.push((*at, "a mark".to_string())),
                Item::Open(_) | Item::Close | Item::Panel(_) | Item::Frame(_) | Item::Line { .. } => {}
            }
        }
        for (index, (at, what)) in solid.iter().enumerate() {
            assert!(holds(&whole, at), "{}: {what} leaves the drawing", page.title);
            for (other, that) in &solid[..index] {
                assert!(!overlap(at, other), "{}: {what} and {that} overlap", page.title);
            }
        }
        let groups = page.items.iter().map(|item| match item {
            Item::Open(_) => 1,
            Item::Close => -1,
            _ => 0,
        });
        assert_eq!(groups.sum::<i32>(), 0);
    }

    #[test]
    fn nothing_overlaps_or_leaves_the_drawing() {
        for name in names() {
            assert_tidy(&Page::of(&name, &graph(&name)));
        }
        let long = "a title that is much longer than the network that it stands above ".repeat(3);
        assert_tidy(&Page::of(&long, &graph("plain20")));
    }

    #[test]
    fn rows_give_shapes_and_numbers() {
        let page = Page::of("ResNet-50", &graph("resnet50"));
        let texts: Vec<&str> = page
            .items
            .iter()
            .filter_map(|item| if let Item::Text(text) = item { Some(&text.text[..]) } else { None })
            .collect();
        for text in ["layer3", "1024 × 14 × 14", "7.10 M", "1.46 G", "× 5", "layer3.1–5", "25.6 M", "4.09 G"] {
            assert!(texts.contains(&text), "no {text} in {texts:?}");
        }
        assert!(page.description.contains("25,557,032 parameters"), "{}", page.description);
        let about = "layer3.0.conv2\n3×3 conv, 256, /2 BN ReLU\noutput 256 × 14 × 14\n590,336 parameters\n\
                     115,605,504 multiply-adds";
        assert!(page.items.iter().any(|item| matches!(item, Item::Box { about: this, .. } if this == about)));
    }
}
