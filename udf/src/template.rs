//! Templates: text with `{name}` and `{0}` placeholders.
//!
//! A brace opens a placeholder only if an identifier (dots allowed) or a number and a closing brace follow; all else is
//! ordinary text. `{{` is a literal brace, and so is the `}}` that closes it.

use datafusion::common::{Result, plan_err};

use crate::call::is_plain;
use crate::options::suggest;

/// Text with the inputs of a call put in, in the user's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// The template as it was written.
    pub source: String,
    /// Text and inputs in order; neighbours are never both text.
    pub pieces: Vec<Piece>,
    /// The names of the inputs.
    pub labels: Vec<String>,
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Text that is the same for all rows.
    Text(String),
    /// The value of the input at this position.
    Input(usize),
}

impl Template {
    /// Reads a template over inputs with these names, which are distinct.
    ///
    /// Fails if a placeholder names no input or an input is named by no placeholder; `function` begins the message.
    pub fn parse(function: &str, source: &str, labels: Vec<String>) -> Result<Template> {
        let mut pieces = Vec::new();
        for token in scan(source) {
            pieces.push(match token {
                Token::Text(text) => Piece::Text(text),
                Token::Placeholder(name) => Piece::Input(position(function, name, &labels)?),
            });
        }
        let unused: Vec<&str> = (0..labels.len())
            .filter(|position| !pieces.contains(&Piece::Input(*position)))
            .map(|position| labels[position].as_str())
            .collect();
        if !unused.is_empty() {
            return plan_err!(
                "{function}: the template has no placeholder for {}; add {{{}}}, or leave the input out, or set mode => 'fields'",
                unused.join(", "),
                unused[0]
            );
        }
        Ok(Template { source: source.to_string(), pieces, labels })
    }

    /// Returns whether the template says nothing but the value of one input.
    pub fn is_bare_value(&self) -> bool {
        matches!(self.pieces.as_slice(), [Piece::Input(_)])
    }
}

/// Returns whether the text holds a placeholder.
pub(crate) fn has_placeholder(text: &str) -> bool {
    scan(text).iter().any(|token| matches!(token, Token::Placeholder(_)))
}

/// Returns the first of the labels that no placeholder of the text names, if there is one.
pub(crate) fn unmentioned<'a>(text: &str, labels: &'a [String]) -> Option<&'a String> {
    let tokens = scan(text);
    let named = tokens.iter().filter_map(|token| match token {
        Token::Placeholder(name) => find(name, labels),
        Token::Text(_) => None,
    });
    let named: Vec<usize> = named.collect();
    labels.iter().enumerate().find(|(position, _)| !named.contains(position)).map(|(_, label)| label)
}

/// Returns the text with `{{` as a brace, and with `{label}` as `` `label` `` for each label there is.
pub(crate) fn refer_to_fields(text: &str, labels: &[String]) -> String {
    let mut out = String::with_capacity(text.len());
    for token in scan(text) {
        match token {
            Token::Text(text) => out.push_str(&text),
            Token::Placeholder(name) => match find(name, labels) {
                Some(position) if is_plain(&labels[position]) => out.extend(["`", &labels[position], "`"]),
                Some(position) => out.push_str(&serde_json::Value::from(labels[position].as_str()).to_string()),
                None => out.extend(["{", name, "}"]),
            },
        }
    }
    out
}

fn position(function: &str, name: &str, labels: &[String]) -> Result<usize> {
    if let Some(position) = find(name, labels) {
        return Ok(position);
    }
    if labels.is_empty() {
        return plan_err!("{function}: the template names {{{name}}}, but the call has no inputs; write {{{{ for a brace");
    }
    plan_err!(
        "{function}: the template names {{{name}}}, which is no input{}; inputs are {}",
        if name.starts_with(|c: char| c.is_ascii_digit()) { String::new() } else { nearest(name, labels) },
        labels.join(", ")
    )
}

fn nearest(name: &str, labels: &[String]) -> String {
    let hint = suggest(name, labels.iter().map(String::as_str));
    if hint.starts_with("; did you mean") { hint } else { String::new() }
}

/// Returns the input that a placeholder means: by position, by name, or by name in another case if only one has it.
fn find(name: &str, labels: &[String]) -> Option<usize> {
    if let Ok(position) = name.parse::<usize>() {
        return (position < labels.len()).then_some(position);
    }
    if let Some(position) = labels.iter().position(|label| label == name) {
        return Some(position);
    }
    let lower = name.to_lowercase();
    let mut found = (0..labels.len()).filter(|position| labels[*position].to_lowercase() == lower);
    let first = found.next();
    if found.next().is_none() { first } else { None }
}

enum Token<'a> {
    Text(String),
    Placeholder(&'a str),
}

fn scan(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut text = String::new();
    let mut open = 0;
    let mut rest = source;
    while let Some(next) = rest.find(['{', '}']) {
        text.push_str(&rest[..next]);
        rest = &rest[next..];
        if let Some(after) = rest.strip_prefix("{{") {
            text.push('{');
            open += 1;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("}}").filter(|_| open > 0) {
            text.push('}');
            open -= 1;
            rest = after;
        } else if let Some(name) = placeholder(rest) {
            if !text.is_empty() {
                tokens.push(Token::Text(std::mem::take(&mut text)));
            }
            tokens.push(Token::Placeholder(name));
            rest = &rest[name.len() + 2..];
        } else {
            text.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        tokens.push(Token::Text(text));
    }
    tokens
}

/// Returns the name between the braces that `text` begins with, if it is one.
fn placeholder(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('{')?;
    let name = &inside[..inside.find('}')?];
    let mut letters = name.chars();
    let first = letters.next()?;
    let is_name = (first.is_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '$'));
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    (is_name || is_number).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[track_caller]
    fn check(source: &str, labels: &[&str], expected: Result<&[Piece], &str>) {
        let labels = labels.iter().map(|label| label.to_string()).collect();
        let got = Template::parse("ai_complete", source, labels).map_err(|error| error.strip_backtrace());
        match expected {
            Ok(pieces) => assert_eq!(got.unwrap().pieces, pieces),
            Err(message) => {
                assert_eq!(got.unwrap_err(), format!("Error during planning: ai_complete: {message}"));
            }
        }
    }

    #[test]
    fn splits_at_placeholders() {
        let body = Piece::Input(0);
        let title = Piece::Input(1);
        check("Sum {body}!", &["body"], Ok(&[text("Sum "), body.clone(), text("!")]));
        check("{0}{1}{0}", &["body", "title"], Ok(&[body.clone(), title.clone(), body.clone()]));
        check("{BODY}", &["body"], Ok(std::slice::from_ref(&body)));
        check("{r.body}", &["r.body"], Ok(std::slice::from_ref(&body)));
        check("{ body} {a b} {} {1a} {body", &[], Ok(&[text("{ body} {a b} {} {1a} {body")]));
        check("{{body}} {body} }}", &["body"], Ok(&[text("{body} "), body, text(" }}")]));
        check("größe {größe}", &["größe"], Ok(&[text("größe "), Piece::Input(0)]));
    }

    #[test]
    fn names_what_is_missing() {
        check(
            "{boddy}",
            &["body", "title"],
            Err("the template names {boddy}, which is no input; did you mean body?; inputs are body, title"),
        );
        check("{2}", &["body", "title"], Err("the template names {2}, which is no input; inputs are body, title"));
        check("{x}", &[], Err("the template names {x}, but the call has no inputs; write {{ for a brace"));
        check(
            "{body}",
            &["body", "title", "id"],
            Err(
                "the template has no placeholder for title, id; add {title}, or leave the input out, or set mode => 'fields'",
            ),
        );
    }

    #[test]
    fn refers_to_fields() {
        let labels = ["body".to_string()];
        assert_eq!(refer_to_fields("Is {body} good? {{x}} {y}", &labels), "Is `body` good? {x} {y}");
        assert!(has_placeholder("{y}") && !has_placeholder("{{y}} { y }"));
    }
}
