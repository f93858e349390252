//! Draws a network in the style of the papers: a column of stages, an Inception module's branches side by side, a
//! residual block with its shortcut, and beside each stage its shape, parameters and multiply-adds.
//!
//! The drawing is derived from the recorded graph alone; there is no code for single architectures.

mod draw;
mod layer;
mod layout;
mod page;
#[cfg(test)]
mod recorded;
mod structure;
mod text;

use models::graph::Graph;

/// Draws the network as a self-contained SVG file with a title.
pub fn svg(title: &str, graph: &Graph) -> String {
    draw::draw(&page::Page::of(title, graph))
}

#[cfg(test)]
mod tests {
    use quick_xml::{Reader, events::Event};

    use super::*;
    use crate::diagram::recorded::{graph, names};

    /// Returns the names of all elements; panics if the document is not well-formed.
    fn elements(svg: &str) -> Vec<String> {
        let mut reader = Reader::from_str(svg);
        let mut elements = Vec::new();
        let mut depth = 0;
        loop {
            match reader.read_event().expect("well-formed XML") {
                Event::Start(element) => {
                    depth += 1;
                    elements.push(String::from_utf8_lossy(element.name().as_ref()).into_owned());
                    assert!(element.attributes().all(|attribute| attribute.is_ok()));
                }
                Event::Empty(element) => {
                    elements.push(String::from_utf8_lossy(element.name().as_ref()).into_owned());
                    assert!(element.attributes().all(|attribute| attribute.is_ok()));
                }
                Event::End(_) => depth -= 1,
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(depth, 0);
        elements
    }

    #[test]
    fn drawings_are_well_formed_and_deterministic() {
        for name in names() {
            let graph = graph(&name);
            let drawing = svg(&name, &graph);
            let elements = elements(&drawing);
            assert_eq!(elements[..3], ["svg", "title", "desc"], "{name}");
            let known = ["svg", "title", "desc", "g", "rect", "path", "circle", "text"];
            assert!(elements.iter().all(|element| known.contains(&&element[..])), "{name}");
            assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{name}");
            assert_eq!(drawing, svg(&name, &graph), "{name}");
        }
    }

    #[test]
    fn names_are_escaped() {
        let mut graph = graph("alexnet");
        graph.nodes.iter_mut().for_each(|node| node.stage = "<b> & \"c\"".to_string());
        let drawing = svg("</svg><script>", &graph);
        assert!(!elements(&drawing).contains(&"script".to_string()));
    }

    #[test]
    fn a_graph_without_nodes_is_drawn() {
        let mut graph = graph("alexnet");
        graph.nodes.clear();
        graph.output = graph.input;
        elements(&svg("nothing", &graph));
    }
}
