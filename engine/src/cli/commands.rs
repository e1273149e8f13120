//! Shell commands: their names, aliases and arguments.

use std::path::PathBuf;
use std::time::Duration;

use super::copy;
use super::error::{Failure, Outcome};
use super::output::Format;
use super::pager::PagerChange;

/// Seconds between two runs of `\watch`, unless it names others.
const WATCH_S: f64 = 2.0;

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
    /// `\mode parquet FILE`: the next result, as Parquet.
    ParquetFile(PathBuf),
    /// `\maxrows [n]`; `Some(None)` lifts the limit.
    MaxRows(Option<Option<usize>>),
    /// `\nullvalue [text]`
    NullValue(Option<String>),
    /// `\o [file]`
    Output(Option<PathBuf>),
    /// `\once file`
    Once(PathBuf),
    /// `\copy (query|table) TO 'file'`
    Copy(copy::Copy),
    /// `\last`
    Last,
    /// `\pager [on|off|command]`
    Pager(PagerChange),
    /// `\i file`
    Include(PathBuf),
    /// `\e`; this statement instead of the last.
    Edit(Option<String>),
    /// `\g`; this statement instead of the last, here and below.
    Go(Option<String>),
    /// `\gx`
    GoExpanded(Option<String>),
    /// `\watch [seconds]`
    Watch(Option<String>, Duration),
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
    entry("mode", Some("mode"), "[FORMAT]", "table, box, expanded, markdown, csv, tsv, json, ndjson, or parquet FILE"),
    entry("x", None, "[on|off]", "one value a line"),
    entry("maxrows", Some("maxrows"), "[N|all]", "rows of a table to show"),
    entry("nullvalue", Some("nullvalue"), "[TEXT]", "text for NULL"),
    entry("timing", Some("timer"), "[on|off]", "time of each statement"),
    entry("pager", None, "[on|off|COMMAND]", "show what is higher than the terminal in a pager ($PAGER, else less)"),
    entry("o", Some("output"), "[FILE]", "write results to a file, or again to the terminal"),
    entry("once", Some("once"), "FILE", "write the next result to a file"),
    entry("copy", None, "QUERY|TABLE TO FILE", "write all rows to a file here: .parquet, .csv, .tsv, .json, .ndjson or .md"),
    entry("last", None, "", "show the last result again, all of its rows; runs nothing"),
    entry("i", Some("read"), "FILE", "run a script"),
    entry("e", None, "", "edit the last statement in $VISUAL or $EDITOR, and run what was saved"),
    entry("g", None, "", "run the last statement again; instead of a semicolon, run what stands before it"),
    entry("gx", None, "", "the same, one value a line"),
    entry("watch", None, "[SECONDS]", "run the last statement again and again until Ctrl-C"),
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
        "mode" => mode(rest)?,
        "maxrows" => Command::MaxRows(argument().map(|text| row_limit(&text)).transpose()?),
        "nullvalue" => Command::NullValue(argument()),
        "o" => Command::Output(argument().filter(|file| file != "stdout").map(PathBuf::from)),
        "once" => Command::Once(argument().map(PathBuf::from).ok_or_else(|| Failure::usage("\\once needs a file"))?),
        "copy" => Command::Copy(copy::parse(rest)?),
        "last" => Command::Last,
        "pager" => Command::Pager(PagerChange::named(rest)),
        "i" => Command::Include(argument().map(PathBuf::from).ok_or_else(|| Failure::usage("\\i needs a file"))?),
        "e" => Command::Edit(None),
        "g" => Command::Go(None),
        "gx" => Command::GoExpanded(None),
        "watch" => Command::Watch(None, interval(rest)?),
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

impl Command {
    /// Returns the command as it is when it ends a statement instead of a semicolon, as in `SELECT 1 \gx`.
    pub(crate) fn of(self, sql: String) -> Outcome<Command> {
        match self {
            Command::Edit(_) => Ok(Command::Edit(Some(sql))),
            Command::Go(_) => Ok(Command::Go(Some(sql))),
            Command::GoExpanded(_) => Ok(Command::GoExpanded(Some(sql))),
            Command::Watch(_, interval) => Ok(Command::Watch(Some(sql), interval)),
            _ => Err(Failure::usage(
                "after a statement stand \\g, \\gx, \\watch or \\e; end it by a semicolon before other commands",
            )),
        }
    }
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
pub(crate) fn unquoted(text: &str) -> String {
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

/// Reads a format, and the file that Parquet needs.
fn mode(text: &str) -> Outcome<Command> {
    if text.is_empty() {
        return Ok(Command::Mode(None));
    }
    let (name, file) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match (Format::named(&unquoted(name))?, file.trim()) {
        (Format::Parquet, "") => Err(Failure::usage("\\mode parquet needs a file")),
        (Format::Parquet, file) => Ok(Command::ParquetFile(PathBuf::from(unquoted(file)))),
        (format, "") => Ok(Command::Mode(Some(format))),
        (format, file) => Err(Failure::usage(format!("\\mode {} takes no file; \\o {file} writes to one", format.name()))),
    }
}

/// Reads how often `\watch` runs a statement.
fn interval(text: &str) -> Outcome<Duration> {
    let seconds = if text.is_empty() { Ok(WATCH_S) } else { text.parse() };
    let interval = seconds.ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    interval
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Failure::usage(format!("\\watch needs a number of seconds above 0, not {text:?}")))
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
        check("\\mode parquet 'a file.parquet'", Command::ParquetFile("a file.parquet".into()));
        check("\\once 'a file.csv'", Command::Once("a file.csv".into()));
        check("\\watch 0.5", Command::Watch(None, Duration::from_millis(500)));
        check("\\watch", Command::Watch(None, Duration::from_secs(2)));
        check("\\gx;", Command::GoExpanded(None));
        check("\\pager less -S", Command::Pager(PagerChange::To("less -S".into())));
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
        for line in ["\\i", "\\once", "\\mode parquet"] {
            assert!(error(line).contains("needs a file"), "{line}");
        }
        assert!(error("\\mode csv x").contains("takes no file"));
        for line in ["\\watch 0", "\\watch -1", "\\watch often", "\\watch NaN"] {
            assert!(error(line).contains("seconds above 0"), "{line}");
        }
    }

    #[test]
    fn some_commands_end_a_statement() {
        let given = |line: &str| parse(line).unwrap().of("select 1".into());
        assert_eq!(given("\\g").unwrap(), Command::Go(Some("select 1".into())));
        assert_eq!(given("\\watch 1").unwrap(), Command::Watch(Some("select 1".into()), Duration::from_secs(1)));
        assert_eq!(given("\\dt").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn every_listed_command_parses() {
        for entry in COMMANDS {
            let argument = match entry.name {
                "i" | "once" => " file",
                "copy" => " t to t.csv",
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
