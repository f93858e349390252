//! The layout of a stage: boxes in columns, branches side by side, shortcuts around their blocks.

use runtime::progress::thousands;

use super::{
    layer::{Cost, Kind, Layer},
    structure::Part,
    text,
};

/// The font size in pixels of the drawing.
pub(super) const TEXT: f64 = 12.0;
/// The distance from the middle of a line of text to its baseline.
pub(super) const BASE: f64 = 4.3;
/// The font size of notes.
const SMALL: f64 = 10.0;
/// The line height.
pub(super) const LINE: f64 = 16.0;
/// The height of a box with one line of text, and with a line of notes under it.
const LINES: [f64; 2] = [24.0, 36.0];
/// The gap between boxes in a column.
const GAP: f64 = 15.0;
/// The gap between branches.
const BETWEEN: f64 = 14.0;
/// The distance from a fork to its branches.
const FORK: f64 = 22.0;
/// The distance from the branches to their join, which leaves room for the numbers of channels.
const JOIN: f64 = 26.0;
/// The radius of the sum sign.
pub(super) const SUM: f64 = 9.0;
/// The distance from a body to its shortcut, and from a block to its caption.
const ASIDE: f64 = 16.0;
/// The corner radius of shortcuts.
const CURVE: f64 = 20.0;
/// The padding between repeated parts and their frame.
const FRAME: f64 = 9.0;

/// A rectangle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// The anchor of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// The style of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Title,
    Strong,
    Plain,
    Muted,
    Note,
}

/// A line of text; `y` is its baseline.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub x: f64,
    pub y: f64,
    pub anchor: Anchor,
    pub style: Style,
    pub text: String,
}

/// A drawing command.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// Begins a group with a title.
    Open(String),
    /// Ends the group.
    Close,
    /// The background of a stage.
    Panel(Rect),
    /// The frame around a repeated part.
    Frame(Rect),
    /// The box of a layer with its texts.
    Box {
        at: Rect,
        kind: Kind,
        texts: Vec<Text>,
        about: String,
    },
    /// The boxes of the input and the classes.
    End {
        at: Rect,
        text: Text,
    },
    /// The sum sign.
    Sum {
        x: f64,
        y: f64,
        about: String,
    },
    /// A polyline with a corner radius, optionally with an arrowhead.
    Line {
        points: Vec<(f64, f64)>,
        round: f64,
        head: bool,
    },
    Text(Text),
    /// A bar of a share, from 0 to 1.
    Share {
        at: Rect,
        share: f64,
    },
    /// A color sample of the legend.
    Swatch {
        at: Rect,
        kind: Kind,
    },
}

/// Items around the axis `x = 0`, on which the line of the column enters at `y = 0` and leaves at the bottom.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub items: Vec<Item>,
    /// The extent on both sides of the axis.
    pub left: f64,
    pub right: f64,
    pub height: f64,
    /// Whether it begins with a line rather than a box.
    pub open: bool,
    /// The positions at the bottom where it ends, with their numbers of channels, if that is not the axis alone.
    exits: Vec<(f64, Option<usize>)>,
}

impl Text {
    /// A text centered at the point.
    pub fn middle(x: f64, y: f64, style: Style, text: impl Into<String>) -> Self {
        Self { x, y, anchor: Anchor::Middle, style, text: text.into() }
    }

    /// A text that begins at the point.
    pub fn start(x: f64, y: f64, style: Style, text: impl Into<String>) -> Self {
        Self { x, y, anchor: Anchor::Start, style, text: text.into() }
    }

    /// A text that ends at the point.
    pub fn end(x: f64, y: f64, style: Style, text: impl Into<String>) -> Self {
        Self { x, y, anchor: Anchor::End, style, text: text.into() }
    }

    /// Limits the width of the text.
    pub fn width(&self) -> f64 {
        self.style.width(&self.text)
    }
}

impl Style {
    pub fn size(self) -> f64 {
        match self {
            Style::Title => 17.0,
            Style::Strong | Style::Plain | Style::Muted => TEXT,
            Style::Note => SMALL,
        }
    }

    /// Returns the width of a text in this style.
    pub fn width(self, text: &str) -> f64 {
        // Bold letters are wider.
        let strong = if matches!(self, Style::Title | Style::Strong) { 1.06 } else { 1.0 };
        text::width(text, self.size()) * strong
    }
}

impl Item {
    /// A vertical line.
    pub fn down(x: f64, from: f64, to: f64, head: bool) -> Self {
        Item::Line { points: vec![(x, from), (x, to)], round: 0.0, head }
    }

    /// A line with the corner radius of shortcuts.
    fn curve<const N: usize>(points: [(f64, f64); N], head: bool) -> Self {
        Item::Line { points: points.to_vec(), round: CURVE, head }
    }

    /// Moves the item.
    fn shift(&mut self, dx: f64, dy: f64) {
        let rect = |at: &mut Rect| (at.x, at.y) = (at.x + dx, at.y + dy);
        let text = |text: &mut Text| (text.x, text.y) = (text.x + dx, text.y + dy);
        match self {
            Item::Open(_) | Item::Close => {}
            Item::Panel(at) | Item::Frame(at) | Item::Share { at, .. } | Item::Swatch { at, .. } => rect(at),
            Item::Box { at, texts, .. } => {
                rect(at);
                texts.iter_mut().for_each(text);
            }
            Item::End { at, text: inner } => {
                rect(at);
                text(inner);
            }
            Item::Sum { x, y, .. } => (*x, *y) = (*x + dx, *y + dy),
            Item::Line { points, .. } => points.iter_mut().for_each(|(x, y)| (*x, *y) = (*x + dx, *y + dy)),
            Item::Text(inner) => text(inner),
        }
    }
}

/// Returns the preferred box width of a column; branches are columns of their own.
pub(super) fn column_width(parts: &[Part], narrow: bool) -> f64 {
    let width = |part: &Part| match part {
        Part::Layer(layer) => box_width(layer, narrow),
        Part::Branches { .. } => 0.0,
        Part::Residual { body, .. } => column_width(body, narrow),
        Part::Repeat(parts) => column_width(parts, narrow),
    };
    parts.iter().map(width).fold(0.0, f64::max)
}

/// Options for drawing parts.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// The minimum width of boxes.
    pub width: f64,
    /// Whether notes are placed under the label, to save width.
    pub narrow: bool,
    /// Whether lines connect the parts.
    pub chained: bool,
}

impl Column {
    /// Stacks parts vertically.
    pub fn series(&self, parts: &[Part]) -> Block {
        let mut block = Block::default();
        for (index, part) in parts.iter().enumerate() {
            let next = self.part(part);
            if index == 0 {
                block.open = next.open;
            } else {
                let (top, bottom) = (block.height, block.height + GAP);
                if self.chained {
                    block.items.push(Item::down(0.0, top, bottom, !next.open));
                }
                block.height = bottom;
            }
            block.add(next);
        }
        block
    }

    fn part(&self, part: &Part) -> Block {
        match part {
            Part::Layer(layer) => self.layer(layer),
            Part::Branches { branches, join } => branch_block(branches, join.as_ref()),
            Part::Residual { body, shortcut, join } => {
                let block = self.residual(body, shortcut, join);
                captioned(block, &[(Style::Note, part.name())])
            }
            Part::Repeat(parts) => self.repeat(part, parts),
        }
    }

    fn layer(&self, layer: &Layer) -> Block {
        let width = self.width.max(box_width(layer, self.narrow));
        let at = Rect { x: -width / 2.0, y: 0.0, width, height: LINES[usize::from(self.narrow)] };
        Block {
            items: vec![layer_box(layer, at, self.narrow)],
            left: width / 2.0,
            right: width / 2.0,
            height: at.height,
            ..Block::default()
        }
    }

    /// Draws a body, its shortcut on the right, and their sum below.
    fn residual(&self, body: &[Part], shortcut: &[Part], join: &Layer) -> Block {
        let mut block = Block { open: true, height: GAP + 5.0, ..Block::default() };
        let body = self.series(body);
        let (top, open) = (block.height, body.open);
        block.items.push(Item::down(0.0, 0.0, top, !open));
        block.add(body);
        let bottom = block.height;

        let leave = 5.0;
        let beside = Column { width: 0.0, ..*self }.series(shortcut);
        let x = block.right + ASIDE + beside.left;
        // Both end at the sum.
        let sum = (bottom + GAP).max(leave + GAP + beside.height) + SUM;
        block.items.push(Item::down(0.0, bottom, sum - SUM, true));
        if shortcut.is_empty() {
            block.items.push(Item::curve([(0.0, leave), (x, leave), (x, sum), (SUM, sum)], true));
        } else {
            let (height, head) = (beside.height, !beside.open);
            let y = ((leave + sum - height) / 2.0).max(leave + GAP);
            block.items.push(Item::curve([(0.0, leave), (x, leave), (x, y)], head));
            block.right = x + beside.right;
            block.items.extend(beside.moved(x, y));
            block.items.push(Item::curve([(x, y + height), (x, sum), (SUM, sum)], true));
        }
        block.right = block.right.max(x);
        block.items.push(Item::Sum { x: 0.0, y: sum, about: about(join) });
        if !join.notes.is_empty() {
            let note = Text::end(-SUM - 6.0, sum + BASE - 0.8, Style::Note, join.notes.join(" "));
            block.left = block.left.max(SUM + 6.0 + note.width());
            block.items.push(Item::Text(note));
        }
        block.height = sum + SUM;
        block
    }

    /// Draws one of several equal parts in a frame, with their number.
    fn repeat(&self, whole: &Part, parts: &[Part]) -> Block {
        let inner = match &parts[0] {
            Part::Residual { body, shortcut, join } => self.residual(body, shortcut, join),
            other => self.part(other),
        };
        let mut block = Block { open: true, height: FRAME + if inner.open { 0.0 } else { 5.0 }, ..Block::default() };
        let at = Rect {
            x: -inner.left - FRAME,
            y: 0.0,
            width: inner.left + inner.right + 2.0 * FRAME,
            height: block.height + inner.height + FRAME,
        };
        let top = block.height;
        let bottom = top + inner.height;
        block.items.push(Item::Frame(at));
        block.items.push(Item::down(0.0, 0.0, top, !inner.open));
        block.add(inner);
        block.items.push(Item::down(0.0, bottom, at.height, false));
        (block.left, block.right, block.height) = (-at.x, at.width + at.x, at.height);
        let mut caption = vec![(Style::Strong, format!("× {}", parts.len()))];
        if !matches!(parts[0], Part::Layer(_)) {
            caption.push((Style::Note, whole.name()));
        }
        captioned(block, &caption)
    }
}

impl Block {
    /// Appends a block below, on the axis.
    fn add(&mut self, mut block: Block) {
        let top = self.height;
        self.left = self.left.max(block.left);
        self.right = self.right.max(block.right);
        self.height += block.height;
        self.exits = std::mem::take(&mut block.exits);
        self.items.extend(block.moved(0.0, top));
    }

    /// Returns the items, moved.
    pub fn moved(self, dx: f64, dy: f64) -> impl Iterator<Item = Item> {
        self.items.into_iter().map(move |mut item| {
            item.shift(dx, dy);
            item
        })
    }
}

/// Draws branches side by side between a fork and the bar that joins them.
fn branch_block(branches: &[Vec<Part>], join: Option<&Layer>) -> Block {
    let block_of = |branch: &Vec<Part>| {
        let mut block = Column { width: column_width(branch, true), narrow: true, chained: true }.series(branch);
        if block.exits.is_empty() {
            let channels = branch.last().and_then(|part| part.layers().last()?.shape.first().copied());
            block.exits = vec![(0.0, channels)];
        }
        // A branch without layers is a line.
        block.left = block.left.max(BETWEEN);
        block.right = block.right.max(BETWEEN);
        block
    };
    let blocks: Vec<Block> = branches.iter().map(block_of).collect();
    let gaps = BETWEEN * blocks.len().saturating_sub(1) as f64;
    let inner = blocks.iter().map(|block| block.left + block.right).sum::<f64>() + gaps;
    let width = inner.max(join.map_or(0.0, |join| box_width(join, false)));
    let tallest = blocks.iter().map(|block| block.height).fold(0.0, f64::max);
    let bottom = FORK + tallest;

    let mut whole = Block { left: width / 2.0, right: width / 2.0, open: true, height: bottom, ..Block::default() };
    let (fork, bar) = (FORK - GAP, bottom + JOIN);
    whole.items.push(Item::down(0.0, 0.0, fork, false));
    let mut left = -inner / 2.0;
    for block in blocks {
        let x = left + block.left;
        // As in the papers, branches end at the same height.
        let top = bottom - block.height;
        let (points, head) = (vec![(0.0, fork), (x, fork), (x, top)], !block.open && block.height > 0.0);
        whole.items.push(Item::Line { points, round: (FORK - fork) / 2.0, head });
        let exits: Vec<(f64, Option<usize>)> = block.exits.iter().map(|&(at, channels)| (at + x, channels)).collect();
        left += block.left + block.right + BETWEEN;
        whole.items.extend(block.moved(x, top));
        if join.is_some() {
            for &(x, channels) in &exits {
                whole.items.push(Item::down(x, bottom, bar, true));
                if let Some(channels) = channels {
                    let number = Text::start(x + 5.0, bottom + 14.0, Style::Note, channels.to_string());
                    whole.items.push(Item::Text(number));
                }
            }
        }
        whole.exits.extend(exits);
    }
    if let Some(join) = join {
        let at = Rect { x: -width / 2.0, y: bar, width, height: LINES[0] };
        whole.items.push(layer_box(join, at, false));
        whole.height = bar + at.height;
        whole.exits.clear();
    }
    whole
}

/// Adds lines of text to the left of a block.
fn captioned(mut block: Block, lines: &[(Style, String)]) -> Block {
    let x = -block.left - ASIDE / 2.0;
    let mut y = (block.height - LINE * (lines.len() as f64 - 1.0)) / 2.0 + BASE;
    for (style, line) in lines {
        let text = Text::end(x, y, *style, line);
        block.left = block.left.max(text.width() - x);
        block.items.push(Item::Text(text));
        y += LINE;
    }
    block
}

/// Returns the width that a layer's texts need.
fn box_width(layer: &Layer, narrow: bool) -> f64 {
    let label = Style::Plain.width(&layer.label);
    let notes = Style::Note.width(&layer.notes.join(" "));
    let texts = match layer.notes.is_empty() {
        true => label,
        false if narrow => label.max(notes),
        false => label + 8.0 + notes,
    };
    texts + 18.0
}

/// Draws the box of a layer with its label and notes centered.
fn layer_box(layer: &Layer, at: Rect, narrow: bool) -> Item {
    let (middle, base) = (at.x + at.width / 2.0, at.y + at.height / 2.0 + BASE);
    let notes = layer.notes.join(" ");
    let texts = if notes.is_empty() {
        vec![Text::middle(middle, base, Style::Plain, &layer.label)]
    } else if narrow {
        vec![
            Text::middle(middle, base - 6.5, Style::Plain, &layer.label),
            Text::middle(middle, base + 7.0, Style::Note, notes),
        ]
    } else {
        // Label and notes are centered together.
        let (label, note) = (Style::Plain.width(&layer.label), Style::Note.width(&notes));
        let left = middle - (label + 8.0 + note) / 2.0;
        vec![
            Text::middle(left + label / 2.0, base, Style::Plain, &layer.label),
            Text::middle(left + label + 8.0 + note / 2.0, base, Style::Note, notes),
        ]
    };
    Item::Box { at, kind: layer.kind, texts, about: about(layer) }
}

/// Returns the tooltip of a layer.
fn about(layer: &Layer) -> String {
    let mut lines = vec![layer.name.clone(), [&[&*layer.label], &layer.notes[..]].concat().join(" ")];
    lines.extend(facts(&layer.shape, layer.cost));
    lines.join("\n")
}

/// Formats output shape, parameters and multiply-adds.
pub(super) fn facts(shape: &[usize], cost: Cost) -> [String; 3] {
    [
        format!("output {}", text::shape(shape)),
        format!("{} parameters", thousands(cost.parameters)),
        format!("{} multiply-adds", thousands(cost.multiply_adds)),
    ]
}
