//! Completion: which words could stand where the cursor is.

use std::path::{Path, PathBuf};

use super::catalog::{self, TableName};
use super::commands::COMMANDS;
use super::output::Format;
use crate::Refrain;
use crate::lex::{self, Token, TokenKind};
use clap::ValueEnum;
use refrain_udf::{option_names, prompt_option_names};

/// Tables whose columns are looked up for completion; a larger catalog completes table names only.
const TABLES_DESCRIBED: usize = 200;

/// Words of SQL worth completing and highlighting.
pub(crate) const KEYWORDS: &[&str] = &[
    "ALL",
    "ALTER",
    "ANALYZE",
    "AND",
    "ANTI",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CALL",
    "CASE",
    "CAST",
    "COPY",
    "CREATE",
    "CROSS",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "EXTERNAL",
    "FALSE",
    "FILTER",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "IF",
    "ILIKE",
    "IN",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTERVAL",
    "INTO",
    "IS",
    "JOIN",
    "KILL",
    "LEFT",
    "LIKE",
    "LIMIT",
    "LOAD",
    "LOCATION",
    "MODEL",
    "MODELS",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PERSISTENT",
    "PROMPT",
    "PROMPTS",
    "QUERY",
    "REPLACE",
    "RESET",
    "RETURNS",
    "RIGHT",
    "SECRET",
    "SECRETS",
    "SELECT",
    "SEMI",
    "SET",
    "SHOW",
    "STORED",
    "TABLE",
    "TABLES",
    "THEN",
    "TO",
    "TRUE",
    "UNION",
    "UNLOAD",
    "USING",
    "VALUES",
    "VIEW",
    "WHEN",
    "WHERE",
    "WITH",
];

/// A table and its columns.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableWords {
    /// Name as it is written in a query.
    pub(crate) name: String,
    /// Names of its columns.
    pub(crate) columns: Vec<String>,
}

/// The names that a session knows, as of the last prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vocabulary {
    /// Tables and views.
    pub(crate) tables: Vec<TableWords>,
    /// Functions.
    pub(crate) functions: Vec<String>,
    /// Prompts, which are called as functions are.
    pub(crate) prompts: Vec<String>,
    /// Models.
    pub(crate) models: Vec<String>,
    /// Session settings.
    pub(crate) settings: Vec<String>,
}

/// A word to insert, and whether it stands for a call or a folder, after which the user goes on without a blank.
pub(crate) type Completions = (usize, Vec<String>);

impl Vocabulary {
    /// Gathers the names that a session knows now.
    pub(crate) async fn of(db: &Refrain) -> Self {
        let ctx = db.context();
        let mut tables = Vec::new();
        for (index, TableName { catalog, schema, table }) in catalog::table_names(ctx).into_iter().enumerate() {
            let provider = ctx.catalog(&catalog).and_then(|catalog| catalog.schema(&schema));
            let mut words = TableWords { name: table, columns: Vec::new() };
            // A table that cannot be opened still completes by name; opening it in a query will tell why.
            if let (true, Some(provider)) = (index < TABLES_DESCRIBED, provider)
                && let Ok(Some(found)) = provider.table(&words.name).await
            {
                words.columns = found.schema().fields().iter().map(|field| field.name().clone()).collect();
            }
            tables.push(words);
        }
        let prompts = db.prompts().list().into_iter().filter(|prompt| prompt.is_current);
        Self {
            tables,
            functions: catalog::function_names(ctx),
            prompts: prompts.map(|prompt| prompt.definition.name).collect(),
            models: db.models().into_iter().map(|model| model.name).collect(),
            settings: catalog::all_settings(ctx).into_iter().map(|setting| setting.name).collect(),
        }
    }

    /// Returns the byte where the word at the end of `input` begins, and what it could become.
    pub(crate) fn complete(&self, input: &str) -> Completions {
        let line_start = input.rfind('\n').map_or(0, |at| at + 1);
        let line = &input[line_start..];
        if line_start == 0 && super::script::is_command(line) {
            return self.complete_command(line);
        }
        self.complete_sql(input)
    }

    fn complete_command(&self, line: &str) -> Completions {
        let Some((command, rest)) = line.split_once(char::is_whitespace) else {
            let dotted = line.starts_with('.');
            let spelled = COMMANDS.iter().filter_map(|entry| {
                if dotted { entry.dot_alias.map(|alias| format!(".{alias}")) } else { Some(format!("\\{}", entry.name)) }
            });
            return (0, starting_with(line, spelled));
        };
        let start = line.len() - rest.trim_start().len();
        let word = &line[start..];
        let names = |names: &[String]| starting_with(word, names.iter().cloned());
        let found = match command {
            "\\mode" | ".mode" => {
                starting_with(word, Format::value_variants().iter().map(|format| format.name().to_owned()))
            }
            "\\d" | ".schema" => starting_with(word, self.tables.iter().map(|table| table.name.clone())),
            "\\model" => names(&self.models),
            "\\set" => names(&self.settings),
            "\\h" | "\\df" => names(&self.functions),
            "\\pager" => starting_with(word, ["on", "off"].into_iter().map(str::to_owned)),
            "\\i" | ".read" | "\\o" | ".output" | "\\once" | ".once" => return files(line, start),
            "\\explain" | "\\estimate" | "\\copy" => return self.complete_sql(line),
            _ => Vec::new(),
        };
        (start, found)
    }

    fn complete_sql(&self, input: &str) -> Completions {
        let tokens: Vec<Token> = lex::tokens(input).collect();
        let Some(last) = tokens.last() else { return (0, Vec::new()) };
        match last.kind {
            TokenKind::Text if !last.closed => self.complete_text(input, last.start + 1),
            TokenKind::Word => self.complete_word(input, &tokens),
            TokenKind::Symbol if last.text(input) == "." => self.complete_word(input, &tokens),
            _ => (input.len(), Vec::new()),
        }
    }

    /// Inside quotes stands a model or a file.
    fn complete_text(&self, input: &str, start: usize) -> Completions {
        let (file_start, found) = files(input, start);
        let mut models = starting_with(&input[start..], self.models.iter().cloned());
        if start == file_start {
            models.extend(found);
            return (start, models);
        }
        (file_start, found)
    }

    fn complete_word(&self, input: &str, tokens: &[Token]) -> Completions {
        // A name may be dotted: take all its parts.
        let is_part = |token: &&Token| token.kind == TokenKind::Word || token.text(input) == ".";
        let start = tokens.iter().rev().take_while(is_part).last().map_or(input.len(), |token| token.start);
        let word = &input[start..];
        let before = tokens.iter().rev().filter(|token| token.end <= start).find(|token| !token.is_blank());
        let before = before.map(|token| token.text(input).to_uppercase()).unwrap_or_default();
        if matches!(before.as_str(), "SET" | "SHOW" | "RESET") && word.contains('.') {
            return (start, starting_with(word, self.settings.iter().cloned()));
        }
        if let Some((qualifier, _)) = word.rsplit_once('.') {
            let table = self.tables.iter().filter(|table| table.name.eq_ignore_ascii_case(qualifier));
            let columns = table.flat_map(|table| table.columns.iter().map(|column| format!("{qualifier}.{column}")));
            return (start, starting_with(word, columns));
        }
        let mut found = Vec::new();
        if matches!(before.as_str(), "SET" | "SHOW" | "RESET") {
            found.extend(starting_with(word, self.settings.iter().cloned()));
        }
        found.extend(starting_with(word, self.tables.iter().map(|table| table.name.clone())));
        found.extend(starting_with(word, self.tables.iter().flat_map(|table| table.columns.iter().cloned())));
        let options = self.options_here(input, &tokens[..tokens.len() - 1]);
        found.extend(starting_with(word, options.into_iter().map(|option| format!("{option} => "))));
        let called = self.functions.iter().chain(&self.prompts);
        found.extend(starting_with(word, called.map(|function| format!("{function}("))));
        found.extend(starting_with(word, KEYWORDS.iter().map(|keyword| cased_like(word, keyword))));
        let mut seen = std::collections::HashSet::new();
        found.retain(|candidate| seen.insert(candidate.clone()));
        (start, found)
    }

    /// Returns the options of the innermost call of a model whose parentheses the text ends inside.
    fn options_here(&self, input: &str, tokens: &[Token]) -> Vec<&'static str> {
        let mut depth = 0_usize;
        let mut tokens = tokens.iter().rev().filter(|token| !token.is_blank()).peekable();
        while let Some(token) = tokens.next() {
            match token.kind {
                TokenKind::Close => depth += 1,
                TokenKind::Open if depth > 0 => depth -= 1,
                TokenKind::Open => {
                    let name = tokens.peek().map(|name| name.text(input).to_lowercase()).unwrap_or_default();
                    let options = option_names(&name);
                    if !options.is_empty() {
                        return options;
                    }
                    if self.prompts.contains(&name) {
                        return prompt_option_names().collect();
                    }
                }
                TokenKind::Semicolon => return vec![],
                _ => {}
            }
        }
        vec![]
    }
}

/// Returns the candidates that begin with `prefix`, whatever the letter case.
fn starting_with(prefix: &str, candidates: impl Iterator<Item = String>) -> Vec<String> {
    let prefix = prefix.to_lowercase();
    candidates.filter(|candidate| candidate.to_lowercase().starts_with(&prefix)).collect()
}

/// Writes a keyword in lower case where the user began it so.
fn cased_like(typed: &str, keyword: &str) -> String {
    if typed.starts_with(char::is_lowercase) { keyword.to_lowercase() } else { keyword.to_owned() }
}

/// Returns the files that the path beginning at `start` could become. The completed part is the last name of the path.
fn files(input: &str, start: usize) -> Completions {
    let typed = &input[start..];
    let name_start = typed.rfind('/').map_or(0, |at| at + 1);
    let (folder, name) = typed.split_at(name_start);
    let folder = if folder.is_empty() { PathBuf::from(".") } else { expanded(folder) };
    let Ok(entries) = std::fs::read_dir(folder) else { return (start, Vec::new()) };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let text = entry.file_name().into_string().ok()?;
            // Hidden files are offered only to those who ask for them.
            let offered = text.starts_with(name) && (name.starts_with('.') || !text.starts_with('.'));
            offered.then(|| if entry.path().is_dir() { format!("{text}/") } else { text })
        })
        .collect();
    found.sort_unstable();
    (start + name_start, found)
}

/// Puts the home folder in the place of `~/`.
fn expanded(folder: &str) -> PathBuf {
    match (folder.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => Path::new(folder).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Vocabulary {
            tables: vec![TableWords { name: "reviews".into(), columns: strings(&["review", "stars"]) }],
            functions: strings(&["abs", "ai_filter"]),
            prompts: strings(&["refund"]),
            models: strings(&["mini", "qwen"]),
            settings: strings(&["refrain.dedup", "refrain.reorder"]),
        }
    }

    /// Compares what `input` could become: `kept|candidate candidate`, `kept` being the part before the completed word.
    #[track_caller]
    fn check(input: &str, expected: &str) {
        let (start, found) = vocabulary().complete(input);
        assert_eq!(format!("{}|{}", &input[..start], found.join(",")), expected);
    }

    #[test]
    fn words_become_keywords_names_and_calls() {
        check("sel", "|select");
        check("SEL", "|SELECT");
        check("select * from rev", "select * from |reviews,review");
        check("select STA", "select |stars");
        check("select ai_f", "select |ai_filter(");
        check("select reviews.s", "select |reviews.stars");
        check("select 1 ", "select 1 |");
    }

    #[test]
    fn options_are_offered_inside_calls_only() {
        check("select ai_filter('q', x, max_t", "select ai_filter('q', x, |max_tokens => ");
        check("select ai_filter('q', abs(1), max_t", "select ai_filter('q', abs(1), |max_tokens => ");
        check("select ai_filter('q'), max_t", "select ai_filter('q'), |");
        check("select ai_filter('q', x, pass", "select ai_filter('q', x, |passages => ");
        check("select ai_sentiment(x, pass", "select ai_sentiment(x, |");
        check("select AI_SENTIMENT(x, asp", "select AI_SENTIMENT(x, |aspects => ");
        check("select refund(x, prompt_", "select refund(x, |prompt_version => ");
        check("select refu", "select |refund(");
    }

    #[test]
    fn settings_follow_set() {
        check("set refrain.re", "set |refrain.reorder");
        check("show refrain.", "show |refrain.dedup,refrain.reorder");
    }

    #[test]
    fn quotes_hold_models_and_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("data.csv"), "").unwrap();
        std::fs::create_dir(folder.path().join("data.d")).unwrap();
        let path = folder.path().display();
        check("select ai_filter('q', x, model => 'qw", "select ai_filter('q', x, model => '|qwen");
        check(&format!("select * from '{path}/da"), &format!("select * from '{path}/|data.csv,data.d/"));
        check(&format!("\\i {path}/data.c"), &format!("\\i {path}/|data.csv"));
    }

    #[test]
    fn commands_and_their_arguments() {
        check("\\ti", "|\\timing");
        check(".ti", "|.timer");
        check("\\mode nd", "\\mode |ndjson");
        check("\\d rev", "\\d |reviews");
        check("\\explain sel", "\\explain |select");
        check("\\model q", "\\model |qwen");
        check("\\mode pa", "\\mode |parquet");
        check("\\copy rev", "\\copy |reviews,review");
        check("\\pager of", "\\pager |off");
    }

    #[test]
    fn keywords_are_in_order() {
        assert!(KEYWORDS.is_sorted());
    }
}
