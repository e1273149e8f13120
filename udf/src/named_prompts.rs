//! Prompts with names: after `CREATE PROMPT refund(ticket VARCHAR) RETURNS BOOLEAN AS '… {ticket}'`, `refund(body)` is a call.
//!
//! A call of a prompt is expanded in the syntax tree into the call of a function that it stands for, so whatever holds for that
//! function holds for the prompt. Answers are kept by the text that is asked, not by the name.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};

use crate::function::Function;
use crate::options::suggest;
use crate::template::{Template, unmentioned};
use crate::value_type::{ValueType, parse_sql_type};

/// Versions of one prompt that are kept.
const VERSIONS_MAX: usize = 1000;

/// The option that names a version of a prompt.
pub(crate) const PROMPT_VERSION: &str = "prompt_version";

/// Options that a prompt decides itself, or that are inputs which it does not declare.
const DECIDED: &[&str] = &["return_type", "response_schema", "regex", "passages"];

/// What `CREATE PROMPT` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptDefinition {
    /// The name, as calls are looked up.
    pub name: String,
    /// The parameters, in order.
    pub parameters: Vec<Parameter>,
    /// The type of an answer: a SQL type, or a JSON schema.
    pub return_type: String,
    /// The model that answers calls which name none.
    pub model: Option<String>,
    /// What is asked, with a placeholder for each parameter.
    pub template: String,
}

/// A parameter of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name, in lower case.
    pub name: String,
    /// The SQL type.
    pub sql_type: String,
}

/// One version of a prompt.
#[derive(Clone, Debug)]
pub struct NamedPrompt {
    /// What it is.
    pub definition: PromptDefinition,
    /// Counts from 1.
    pub version: u32,
    /// Whether calls use it that name no version.
    pub is_current: bool,
    /// When it was made.
    pub created_at: SystemTime,
}

/// The prompts that sessions share.
#[derive(Debug, Default)]
pub struct NamedPrompts {
    /// The versions of each prompt, oldest first; at least one.
    prompts: Mutex<BTreeMap<String, Vec<Version>>>,
}

#[derive(Debug)]
struct Version {
    definition: PromptDefinition,
    created_at: SystemTime,
}

impl PromptDefinition {
    /// Returns the prompt as it is called: `refund(ticket VARCHAR)`.
    pub fn signature(&self) -> String {
        let parameters = self.parameters.iter().map(|Parameter { name, sql_type }| format!("{name} {sql_type}"));
        format!("{}({})", self.name, parameters.collect::<Vec<_>>().join(", "))
    }

    /// Returns the identity of what is asked, name aside, in hexadecimal.
    pub fn hash(&self) -> String {
        let PromptDefinition { name: _, parameters, return_type, model, template } = self;
        // Debug output quotes strings, so parts cannot run into each other.
        blake3::hash(format!("{parameters:?} {return_type:?} {model:?} {template:?}").as_bytes()).to_hex().to_string()
    }

    /// Returns the function that a call stands for, and whether it must be told the type of its answer.
    pub(crate) fn function(&self) -> Result<(Function, bool)> {
        let returned = ValueType::parse(&self.subject("RETURNS"), &self.return_type)?;
        let is_schema = self.return_type.trim_start().starts_with('{');
        Ok(match returned.data_type {
            DataType::Boolean if !is_schema => (Function::Filter, false),
            DataType::Utf8 if !is_schema => (Function::Complete, false),
            _ => (Function::Complete, true),
        })
    }

    /// Returns the options that a call may give.
    pub(crate) fn options(&self) -> Result<impl Iterator<Item = &'static str> + use<>> {
        let options = self.function()?.0.signature().option_names();
        Ok(options.filter(|option| !DECIDED.contains(option)).chain([PROMPT_VERSION]))
    }

    /// Fails if a type is none, if a parameter cannot be told from another or from an option, or if parameters and placeholders do not
    /// match.
    fn check(&self) -> Result<()> {
        let PromptDefinition { name, parameters, template, .. } = self;
        if template.trim().is_empty() {
            return plan_err!("prompt {name}: the template after AS must not be empty");
        }
        let options: Vec<&str> = self.options()?.collect();
        for (position, Parameter { name: parameter, sql_type }) in parameters.iter().enumerate() {
            parse_sql_type(&self.subject(&format!("parameter {parameter}")), sql_type)?;
            if parameters[..position].iter().any(|other| other.name == *parameter) {
                return plan_err!("prompt {name}: parameter {parameter} is declared twice");
            }
            if options.contains(&parameter.as_str()) {
                return plan_err!("prompt {name}: parameter {parameter} has the name of an option; choose another");
            }
        }
        let labels: Vec<String> = parameters.iter().map(|parameter| parameter.name.clone()).collect();
        if let Some(parameter) = unmentioned(template, &labels) {
            return plan_err!(
                "prompt {name}: the template does not mention parameter {parameter}; add {{{parameter}}}, or leave the parameter out"
            );
        }
        Template::parse(&format!("prompt {name}"), template, labels)?;
        Ok(())
    }

    fn subject(&self, part: &str) -> String {
        format!("prompt {}: {part}", self.name)
    }
}

impl NamedPrompts {
    /// Adds a prompt. Fails if it is wrong in itself, or if there is one of this name.
    pub fn create(&self, definition: PromptDefinition) -> Result<()> {
        definition.check()?;
        let mut prompts = self.lock();
        if prompts.contains_key(&definition.name) {
            let name = definition.name;
            return plan_err!(
                "prompt {name} exists already; use CREATE OR REPLACE PROMPT to add a version, or another name"
            );
        }
        prompts.insert(definition.name.clone(), vec![Version::now(definition)]);
        Ok(())
    }

    /// Adds a prompt, or a version to the one of this name; calls that name no version use it from now on. Fails if the prompt is wrong in
    /// itself, or has too many versions.
    pub fn create_or_replace(&self, definition: PromptDefinition) -> Result<()> {
        definition.check()?;
        let mut prompts = self.lock();
        let versions = prompts.entry(definition.name.clone()).or_default();
        if versions.len() >= VERSIONS_MAX {
            let name = definition.name;
            return plan_err!(
                "prompt {name} has {VERSIONS_MAX} versions, and no more are kept; use DROP PROMPT {name} first"
            );
        }
        versions.push(Version::now(definition));
        Ok(())
    }

    /// Removes a prompt with all its versions; plans that were made with it keep it. Returns whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    /// Returns whether there is a prompt of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Lists all versions by name, oldest first.
    pub fn list(&self) -> Vec<NamedPrompt> {
        self.lock()
            .values()
            .flat_map(|versions| (1..=versions.len()).map(|version| Version::listed(versions, version)))
            .collect()
    }

    /// Returns the current version of a prompt. Fails if there is none of this name.
    pub fn describe(&self, name: &str) -> Result<NamedPrompt> {
        let prompts = self.lock();
        match prompts.get(name) {
            Some(versions) => Ok(Version::listed(versions, versions.len())),
            None => plan_err!("prompt {name} is unknown{}", suggest(name, prompts.keys().map(String::as_str))),
        }
    }

    /// Returns the version of a prompt that a call uses; `None` if there is no prompt of this name. Fails if it has no such version.
    pub(crate) fn find(&self, name: &str, version: Option<usize>) -> Result<Option<PromptDefinition>> {
        let prompts = self.lock();
        let Some(versions) = prompts.get(name) else { return Ok(None) };
        let count = versions.len();
        match version.unwrap_or(count).checked_sub(1).and_then(|at| versions.get(at)) {
            Some(version) => Ok(Some(version.definition.clone())),
            None => plan_err!(
                "{name}: there is no version {} of this prompt; its versions are 1 to {count}, as SELECT * FROM ai_prompts() shows",
                version.unwrap_or_default()
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Version>>> {
        self.prompts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Version {
    fn now(definition: PromptDefinition) -> Self {
        Version { definition, created_at: SystemTime::now() }
    }

    fn listed(versions: &[Version], version: usize) -> NamedPrompt {
        let Version { definition, created_at } = &versions[version - 1];
        NamedPrompt {
            definition: definition.clone(),
            version: version as u32,
            is_current: version == versions.len(),
            created_at: *created_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(parameters: &[(&str, &str)], return_type: &str, template: &str) -> PromptDefinition {
        let parameter = |(name, sql_type): &(&str, &str)| Parameter { name: (*name).into(), sql_type: (*sql_type).into() };
        PromptDefinition {
            name: "p".into(),
            parameters: parameters.iter().map(parameter).collect(),
            return_type: return_type.into(),
            model: None,
            template: template.into(),
        }
    }

    #[track_caller]
    fn check_error(parameters: &[(&str, &str)], return_type: &str, template: &str, message: &str) {
        let error = definition(parameters, return_type, template).check().unwrap_err().strip_backtrace();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn definitions_are_checked() {
        let text = ("x", "VARCHAR");
        definition(&[text], "STRUCT(a INT)", "Read {X}").check().unwrap();
        definition(&[], "VARCHAR", "Say hello").check().unwrap();
        check_error(&[text], "VARCHAR", " ", "prompt p: the template after AS must not be empty");
        check_error(
            &[text],
            "VARCHAR",
            "Read",
            "the template does not mention parameter x; add {x}, or leave the parameter out",
        );
        check_error(&[text], "VARCHAR", "{x} {y}", "prompt p: the template names {y}, which is no input; inputs are x");
        check_error(&[], "VARCHAR", "{y}", "write {{ for a brace");
        check_error(&[text, text], "VARCHAR", "{x}", "prompt p: parameter x is declared twice");
        check_error(&[("seed", "INT")], "VARCHAR", "{seed}", "parameter seed has the name of an option; choose another");
        check_error(&[("x", "TEXTT")], "VARCHAR", "{x}", "prompt p: parameter x: cannot read 'TEXTT' as a SQL type");
        check_error(&[text], "MAP(INT, INT)", "{x}", "prompt p: RETURNS");
    }

    #[test]
    fn a_replaced_prompt_has_versions() {
        let prompts = NamedPrompts::default();
        let of = |template| definition(&[], "VARCHAR", template);
        prompts.create(of("one")).unwrap();
        assert!(prompts.create(of("two")).unwrap_err().to_string().contains("prompt p exists already"));
        prompts.create_or_replace(of("two")).unwrap();
        let asked = |version| prompts.find("p", version).map(|found| found.unwrap().template);
        assert_eq!(asked(None).unwrap(), "two");
        assert_eq!(asked(Some(1)).unwrap(), "one");
        for version in [0, 3] {
            assert!(asked(Some(version)).unwrap_err().to_string().contains("its versions are 1 to 2"));
        }
        let listed: Vec<(u32, bool)> = prompts.list().iter().map(|prompt| (prompt.version, prompt.is_current)).collect();
        assert_eq!(listed, [(1, false), (2, true)]);
        assert_eq!(prompts.describe("p").unwrap().version, 2);
        assert!(prompts.describe("q").unwrap_err().to_string().contains("prompt q is unknown"));
        assert!(prompts.remove("p") && !prompts.remove("p"));
        assert!(prompts.find("p", Some(9)).unwrap().is_none());
    }

    #[test]
    fn the_hash_is_of_what_is_asked() {
        let one = definition(&[], "VARCHAR", "one");
        assert_eq!(one.hash(), PromptDefinition { name: "q".into(), ..one.clone() }.hash());
        assert_ne!(one.hash(), PromptDefinition { model: Some("m".into()), ..one.clone() }.hash());
        assert_ne!(one.hash(), PromptDefinition { return_type: "INT".into(), ..one.clone() }.hash());
    }
}
