//! Tables of results inside of other pages, so that no figure is copied by hand.
//!
//! A page says what it wants by two marks, with a folder beside itself. What stands between them is made of the results there:
//!
//! ```text
//! <!-- results/h100-1b: speed-ups -->
//! …
//! <!-- end -->
//! ```

use std::fs;
use std::path::Path;

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use super::report::{Report, render};
use super::results;

/// What a page may have, each by a template.
const TABLES: [(&str, &str); 2] =
    [("speed-ups", include_str!("speedups.md.jinja")), ("quality", include_str!("quality.md.jinja"))];

const END: &str = "<!-- end -->";

/// Makes the tables of a page anew.
pub(super) fn run(session: &mut Session, page: &Path) -> Outcome<()> {
    let text = fs::read_to_string(page).map_err(|error| Failure::file("read", page, error))?;
    let made = filled(&text, page.parent().unwrap_or(Path::new(".")))?;
    fs::write(page, made).map_err(|error| Failure::file("write", page, error))?;
    session.notice(&format!("wrote {}", page.display()));
    Ok(())
}

/// Returns the text of a page with its tables made of the results in the folders that it names, which lie in `beside`.
pub(super) fn filled(text: &str, beside: &Path) -> Outcome<String> {
    let mut made = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        made.push_str(line);
        let Some((folder, template)) = mark(line) else { continue };
        let report = Report::of(&results::read(&beside.join(folder).join(results::FILE))?);
        made.push_str(&format!("\n{}\n\n{END}\n", render("a table", template, &report)?.trim()));
        if !lines.by_ref().any(|line| line.trim() == END) {
            return Err(Failure::usage(format!("{} has no {END} after it", line.trim())));
        }
    }
    Ok(made)
}

/// Reads a mark: the folder of the results, and the template of the table.
fn mark(line: &str) -> Option<(&str, &'static str)> {
    let (folder, what) = line.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")?.split_once(": ")?;
    let template = TABLES.iter().find(|(name, _)| *name == what)?.1;
    Some((folder, template))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_marks_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("here");
        fs::create_dir(&results).unwrap();
        let measured = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results/cpu-quality").join(results::FILE);
        fs::copy(measured, results.join(results::FILE)).unwrap();
        let page = "before\n<!-- here: quality -->\nold\n<!-- end -->\nafter\n<!-- a: comment -->\n";
        let made = filled(page, folder.path()).unwrap();
        assert!(made.starts_with("before\n<!-- here: quality -->\n\n| query |") && !made.contains("old"), "{made}");
        assert!(
            made.ends_with("|\n\n<!-- end -->\nafter\n<!-- a: comment -->\n") && made.contains("| quality-squad |"),
            "{made}"
        );
        assert_eq!(filled(&made, folder.path()).unwrap(), made);
        let error = filled("<!-- here: quality -->\n", folder.path()).unwrap_err();
        assert!(error.to_string().contains("no <!-- end -->"), "{error}");
        assert!(filled("<!-- there: quality -->\n<!-- end -->\n", folder.path()).is_err());
    }

    /// `refrain bench report --into docs/benchmarks.md` mends it.
    #[test]
    fn the_page_of_benchmarks_is_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let text = fs::read_to_string(folder.join("benchmarks.md")).unwrap();
        assert!(text.contains(": speed-ups -->"));
        assert_eq!(filled(&text, &folder).unwrap(), text);
    }
}
