//! Shell commands: their names, aliases and arguments.

use std::path::PathBuf;

use super::error::{Failure, Outcome};
use super::output::Format;

/// A shell command, ready to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `\d [table]`
    Describe(Option<String>),
    /// `\dt`
    Tables,
    /// `\dm`
    Models,
    /// `\dp`
    Prompts,
    /// `\df [pattern]`
    Functions(Option<String>),
    /// `\timing [on|off]`
    Timing(Option<bool>),
    /// `\x [on|off]`
    Expanded(Option<bool>),
    /// `\mode [format]`
    Mode(Option<Format>),
    /// `\maxrows [n]`; `Some(None)` lifts the limit.
    MaxRows(Option<Option<usize>>),
    /// `\nullvalue [text]`
    NullValue(Option<String>),
    /// `\o [file]`
    Output(Option<PathBuf>),
    /// `\i file`
    Include(PathBuf),
    /// `\usage`
    Usage,
    /// `\errors`
    Errors,
    /// `\kill id`
    Kill(u64),
    /// `\cache clear [tier]`
    ClearCache(Option<String>),
    /// `\explain [sql]`
    Explain(Option<String>),
    /// `\estimate [sql]`
    Estimate(Option<String>),
    /// `\model [name]`
    Model(Option<String>),
    /// `\set [name [value]]`
    Set(Option<(String, Option<String>)>),
    /// `\connect URI|local`; `None` is this process.
    Connect(Option<String>),
    /// `\conninfo`
    ConnInfo,
    /// `\?`
    Help,
    /// `\h [function]`
    HelpOn(Option<String>),
    /// `\q`
    Quit,
}

/// One command as the help lists it.
pub(crate) struct Entry {
    /// Name without its backslash.
    pub(crate) name: &'static str,
    /// Name without its dot, for those who come from other shells.
    pub(crate) dot_alias: Option<&'static str>,
    /// Arguments as the help shows them.
    pub(crate) arguments: &'static str,
    /// What it does.
    pub(crate) help: &'static str,
}

const fn entry(name: &'static str, dot_alias: Option<&'static str>, arguments: &'static str, help: &'static str) -> Entry {
    Entry { name, dot_alias, arguments, help }
}

/// All commands, in the order of the help.
pub(crate) const COMMANDS: &[Entry] = &[
    entry("d", Some("schema"), "[TABLE]", "columns of a table, or all tables and views"),
    entry("dt", Some("tables"), "", "tables and views"),
    entry("dm", None, "", "models"),
    entry("dp", None, "", "prompts with names"),
    entry("df", None, "[PATTERN]", "functions; `*` matches anything; without a pattern those that call models"),
    entry("mode", Some("mode"), "[FORMAT]", "table, expanded, markdown, csv, tsv, json or ndjson"),
    entry("x", None, "[on|off]", "one value a line"),
    entry("maxrows", Some("maxrows"), "[N|all]", "rows of a table to show"),
    entry("nullvalue", Some("nullvalue"), "[TEXT]", "text for NULL"),
    entry("timing", Some("timer"), "[on|off]", "time of each statement"),
    entry("o", Some("output"), "[FILE]", "write results to a file, or again to the terminal"),
    entry("i", Some("read"), "FILE", "run a script"),
    entry("explain", None, "[SQL]", "plan of a statement, or of the last one; calls no model"),
    entry("estimate", None, "[SQL]", "what a statement, or the last one, would cost; calls no model"),
    entry("usage", None, "", "calls and tokens of the last query"),
    entry("errors", None, "", "rows of the last query that failed"),
    entry("kill", None, "ID", "stop a query; SELECT * FROM ai_queries() lists them"),
    entry("cache", None, "clear [TIER]", "forget answers that were kept: those of the session, or persistent ones"),
    entry("model", None, "[NAME]", "choose the default model, or show it"),
    entry("set", None, "[NAME [VALUE]]", "session settings"),
    entry(
        "connect",
        Some("open"),
        "URI|local",
        "run statements on a server (grpc://host:port, grpc+tls://user@host:port), or again here",
    ),
    entry("conninfo", None, "", "this session"),
    entry("h", None, "[FUNCTION]", "help on a function"),
    entry("?", Some("help"), "", "this help"),
    entry("q", Some("quit"), "", "leave"),
];

/// Parses a command line such as `\mode csv` or `.mode csv`.
pub(crate) fn parse(line: &str) -> Outcome<Command> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let argument = || (!rest.is_empty()).then(|| unquoted(rest));
    Ok(match canonical(word)? {
        "d" => Command::Describe(argument()),
        "dt" => Command::Tables,
        "dm" => Command::Models,
        "dp" => Command::Prompts,
        "df" => Command::Functions(argument()),
        "timing" => Command::Timing(switch(rest)?),
        "x" => Command::Expanded(switch(rest)?),
        "mode" => Command::Mode(argument().map(|name| Format::named(&name)).transpose()?),
        "maxrows" => Command::MaxRows(argument().map(|text| row_limit(&text)).transpose()?),
        "nullvalue" => Command::NullValue(argument()),
        "o" => Command::Output(argument().filter(|file| file != "stdout").map(PathBuf::from)),
        "i" => Command::Include(argument().map(PathBuf::from).ok_or_else(|| Failure::usage("\\i needs a file"))?),
        "explain" => Command::Explain((!rest.is_empty()).then(|| rest.to_owned())),
        "estimate" => Command::Estimate((!rest.is_empty()).then(|| rest.to_owned())),
        "usage" => Command::Usage,
        "errors" => Command::Errors,
        "kill" => Command::Kill(rest.parse().map_err(|_| Failure::usage("\\kill needs the number of a query"))?),
        "cache" => cache(rest)?,
        "model" => Command::Model(argument()),
        "set" => Command::Set(assignment(rest)),
        "connect" => connect(rest)?,
        "conninfo" => Command::ConnInfo,
        "h" => Command::HelpOn(argument()),
        "q" => Command::Quit,
        _ => Command::Help,
    })
}

/// Returns the name under which a typed word is listed.
fn canonical(word: &str) -> Outcome<&'static str> {
    let is_dot = word.starts_with('.');
    let typed = word.get(1..).unwrap_or_default();
    let spelled = |entry: &Entry| if is_dot { entry.dot_alias } else { Some(entry.name) };
    if let Some(entry) = COMMANDS.iter().find(|entry| spelled(entry) == Some(typed)) {
        return Ok(entry.name);
    }
    if is_dot && typed == "exit" {
        return Ok("q");
    }
    let sign = if is_dot { '.' } else { '\\' };
    let nearest = nearest(typed, COMMANDS.iter().filter_map(spelled)).unwrap_or("?");
    Err(Failure::usage(format!("no command {word}; did you mean {sign}{nearest}? \\? lists all")))
}

/// Returns the candidate with the fewest edits from `word`; the first of several.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.min_by_key(|candidate| edit_distance(word, candidate))
}

/// Counts the insertions, removals and replacements that lead from `a` to `b` (Levenshtein), row by row.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Takes the quotes off an argument.
fn unquoted(text: &str) -> String {
    let inner = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.unwrap_or(text).to_owned()
}

fn switch(text: &str) -> Outcome<Option<bool>> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "on" | "true" | "1" => Ok(Some(true)),
        "off" | "false" | "0" => Ok(Some(false)),
        _ => Err(Failure::usage(format!("expected on or off, not {text:?}"))),
    }
}

fn row_limit(text: &str) -> Outcome<Option<usize>> {
    if matches!(text, "all" | "inf" | "0") {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Failure::usage(format!("expected a number of rows or all, not {text:?}")))
}

/// Reads where to connect to.
fn connect(text: &str) -> Outcome<Command> {
    match text {
        "" => {
            Err(Failure::usage("\\connect needs the address of a server, such as grpc://127.0.0.1:31337, or the word local"))
        }
        "local" => Ok(Command::Connect(None)),
        address => Ok(Command::Connect(Some(unquoted(address)))),
    }
}

/// Reads `clear [tier]`.
fn cache(text: &str) -> Outcome<Command> {
    let (verb, tier) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match verb {
        "clear" => Ok(Command::ClearCache((!tier.trim().is_empty()).then(|| unquoted(tier.trim())))),
        _ => Err(Failure::usage("\\cache clear [session|persistent|checkpoint] is all there is")),
    }
}

/// Reads `name`, `name value` or `name = value`.
fn assignment(text: &str) -> Option<(String, Option<String>)> {
    let end = text.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(text.len());
    let value = text[end..].trim_start();
    let value = value.strip_prefix('=').unwrap_or(value).trim();
    (end > 0).then(|| (text[..end].to_owned(), (!value.is_empty()).then(|| unquoted(value))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Command) {
        assert_eq!(parse(line).unwrap(), expected);
    }

    #[test]
    fn commands_take_their_arguments() {
        check("\\d", Command::Describe(None));
        check("\\d my_table;", Command::Describe(Some("my_table".into())));
        check("\\i 'a file.sql'", Command::Include("a file.sql".into()));
        check("\\mode NDJSON", Command::Mode(Some(Format::Ndjson)));
        check("\\x on", Command::Expanded(Some(true)));
        check("\\maxrows 20", Command::MaxRows(Some(Some(20))));
        check("\\maxrows all", Command::MaxRows(Some(None)));
        check("\\nullvalue ''", Command::NullValue(Some(String::new())));
        check("\\explain select 'a' ;", Command::Explain(Some("select 'a'".into())));
        check("\\set dedup = 'off'", Command::Set(Some(("dedup".into(), Some("off".into())))));
        check("\\set dedup off", Command::Set(Some(("dedup".into(), Some("off".into())))));
        check("\\set", Command::Set(None));
        check("\\?", Command::Help);
        check("\\kill 7", Command::Kill(7));
        check("\\cache clear 'persistent'", Command::ClearCache(Some("persistent".into())));
        check("\\cache clear", Command::ClearCache(None));
        check("\\connect local", Command::Connect(None));
        check(".open grpc://h:1", Command::Connect(Some("grpc://h:1".into())));
    }

    #[test]
    fn dot_aliases_mean_the_same() {
        check(".tables", Command::Tables);
        check(".timer off", Command::Timing(Some(false)));
        check(".schema t", Command::Describe(Some("t".into())));
        check(".read a.sql", Command::Include("a.sql".into()));
        check(".output stdout", Command::Output(None));
        check(".help", Command::Help);
        check(".exit", Command::Quit);
    }

    #[test]
    fn errors_name_the_nearest_command() {
        let error = |line| parse(line).unwrap_err().to_string();
        assert!(error("\\timng").contains("did you mean \\timing?"));
        assert!(error(".tabels").contains("did you mean .tables?"));
        assert!(error("\\maxrows many").contains("\"many\""));
        assert!(error("\\i").contains("needs a file"));
    }

    #[test]
    fn every_listed_command_parses() {
        for entry in COMMANDS {
            let argument = match entry.name {
                "i" => " file",
                "kill" => " 7",
                "cache" => " clear",
                "connect" => " local",
                _ => "",
            };
            parse(&format!("\\{}{argument}", entry.name)).unwrap();
            if let Some(alias) = entry.dot_alias {
                parse(&format!(".{alias}{argument}")).unwrap();
            }
        }
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "ab"), 2);
    }
}
