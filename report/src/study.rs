//! The page of `train study`.

use maud::html;

use crate::{chart::Chart, page::Page};

/// A network of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyRow {
    /// The architecture.
    pub network: &'static str,
    /// The name of the run folder, which is beside the page.
    pub run: String,
    /// The error on the training images in percent.
    pub train_error: f64,
    /// The error on the validation images in percent.
    pub validation_error: f64,
}

/// Returns the page of the study of shortcuts by He et al. (2015), figure 6.
pub fn shortcuts<'a>(rows: &[StudyRow], charts: impl Iterator<Item = &'a Chart>) -> String {
    let head = html! {
        h1 { "Shortcuts" }
        p {
            "Four networks trained by one recipe, with 20 and 56 layers, without shortcuts (dashed) and with them. The deeper \
             plain network has the higher error already on its training images, so the cause is optimization and not \
             overfitting. With shortcuts, depth does not increase the error (He et al., 2015, section 4.2 and figure 6)."
        }
    };
    let mut page = Page::new("Shortcuts", head);
    let table = html! {
        table {
            tr { th { "network" } th { "training error" } th { "validation error" } }
            @for StudyRow { network, run, train_error, validation_error } in rows {
                tr {
                    th { a href={ (run) "/report.html" } { (network) } }
                    td { (format!("{train_error:.2} %")) }
                    td { (format!("{validation_error:.2} %")) }
                }
            }
        }
    };
    page.section("errors", "Errors", Some(table));
    let figures = html! { @for chart in charts { (chart.to_figure()) } };
    page.section("curves", "Curves and gradients", Some(figures));
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_run_folder_is_escaped() {
        let run = r#"a"><script>"#.to_string();
        let row = StudyRow { network: "plain20", run, train_error: 1.0, validation_error: 2.0 };
        let page = shortcuts(&[row], std::iter::empty());
        assert!(page.contains(r#"<a href="a&quot;&gt;&lt;script&gt;/report.html">plain20</a>"#), "{page}");
    }
}
