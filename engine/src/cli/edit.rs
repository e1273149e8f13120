//! `\e`: a statement in the user's own editor.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::child;
use super::error::{Failure, Outcome};

/// The editor of those who name none.
const EDITOR: &str = "vi";

/// How old the file looks when it is opened, so that saving it shows whatever the file system's clock can tell apart.
const AGE: Duration = Duration::from_secs(60);

/// Returns the user's editor: `$VISUAL`, else `$EDITOR`.
pub(crate) fn editor() -> String {
    let chosen = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
    chosen.map(|editor| editor.trim().to_owned()).find(|editor| !editor.is_empty()).unwrap_or_else(|| EDITOR.to_owned())
}

/// Lets the user edit a text in a file that nobody else may read, which is gone afterwards. Returns what was saved, `None` if nothing was.
pub(crate) fn edited(editor: &str, text: &str) -> Outcome<Option<String>> {
    let cannot = |action: &'static str| move |error| Failure::io(action, error);
    let new = tempfile::Builder::new().prefix("refrain-").suffix(".sql").tempfile();
    let mut file = new.map_err(cannot("cannot make a file to edit"))?;
    file.write_all(text.as_bytes()).map_err(cannot("cannot write the file to edit"))?;
    file.as_file().set_modified(SystemTime::now() - AGE).map_err(cannot("cannot write the file to edit"))?;
    let modified = |path: &Path| std::fs::metadata(path).and_then(|facts| facts.modified());
    let before = modified(file.path()).map_err(cannot("cannot read the file to edit"))?;

    let status = child::command(editor).arg(file.path()).status().map_err(cannot("cannot start the editor"))?;
    if status.code() == Some(child::NOT_FOUND) {
        return Err(Failure::usage(format!("no editor {editor}; VISUAL or EDITOR names one")));
    }
    if !status.success() {
        return Err(Failure::usage(format!("the editor {editor} ended with {status}, and nothing was run")));
    }
    // Editors may put another file in the place of the one they were given, so it is opened by its name.
    let after = modified(file.path()).map_err(cannot("cannot read the file that was edited"))?;
    if after == before {
        return Ok(None);
    }
    std::fs::read_to_string(file.path()).map(Some).map_err(cannot("cannot read the file that was edited"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_returned() {
        let text = edited("sed -i s/1/2/", "select 1;\n").unwrap();
        assert_eq!(text.as_deref(), Some("select 2;\n"));
        assert_eq!(edited("true", "select 1;\n").unwrap(), None, "nothing was saved");
    }

    #[test]
    fn an_editor_that_fails_is_told() {
        assert!(edited("false", "x").unwrap_err().to_string().contains("nothing was run"));
        let missing = edited("no-such-editor-anywhere 2> /dev/null", "x").unwrap_err().to_string();
        assert!(missing.contains("VISUAL or EDITOR names one"), "{missing}");
    }
}
