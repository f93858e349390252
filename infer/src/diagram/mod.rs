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
        let graph = graph("alexnet");
        // Both payloads have the same length and estimated width, so the drawings differ in nothing but their texts.
        let drawing = |payload: &str| {
            let mut graph = graph.clone();
            graph.nodes.iter_mut().for_each(|node| node.stage += payload);
            graph.constants.values_mut().for_each(|constant| {
                if let Some(module) = constant.name.strip_suffix(".weight") {
                    constant.name = format!("{module}{payload}.weight");
                }
            });
            svg(&format!("title{payload}"), &graph)
        };
        let hostile = drawing("<script>alert(1)</script>\"'&");
        let harmless = drawing("nscriptnalertn1nnnscriptnnin");
        assert_eq!(elements(&hostile), elements(&harmless));
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;'&amp;";
        for name in ["title", "features.0", "classifier.6"] {
            assert!(hostile.contains(&format!("{name}{escaped}")), "{hostile}");
        }
        // No name is cut within its first characters, so each of them begins with an escaped `<`.
        assert_eq!(
            hostile.matches("script").count(),
            hostile.matches("&lt;script").count() + hostile.matches("&lt;/script").count()
        );
        let markup = hostile.replace(escaped, "");
        assert!(!markup.contains('\''), "{markup}");
    }

    #[test]
    fn forbidden_characters_are_replaced() {
        let drawing = svg("a\u{1}b", &graph("alexnet"));
        assert!(drawing.contains("<title>a\u{fffd}b</title>") && !drawing.contains('\u{1}'));
    }

    #[test]
    fn a_graph_without_nodes_is_drawn() {
        let mut graph = graph("alexnet");
        graph.nodes.clear();
        graph.output = graph.input;
        elements(&svg("nothing", &graph));
    }
}
