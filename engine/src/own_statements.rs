//! What statements of our own do, and the columns of those that show something.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::plan_datafusion_err;
use refrain_udf::{NamedPrompt, PromptDefinition, Settings};

use crate::Refrain;
use crate::answers::Tier;
use crate::error::Result;
use crate::model_options::{ExternalModel, LocalOptions};
use crate::models::ModelInfo;
use crate::planner::device_options;
use crate::secrets::SecretInfo;
use crate::statement::{Existing, Statement};

/// The columns of a description.
const PROPERTIES: &[&str] = &["property", "value"];

impl Refrain {
    /// Runs a statement of our own.
    pub(crate) async fn run_own(&self, statement: Statement) -> Result<Option<RecordBatch>> {
        match statement {
            Statement::CreateModel { name, location, existing, options } => {
                let options = LocalOptions::parse(&name, options)?;
                self.models.create(&name, &location, options, existing).await?;
            }
            Statement::CreateExternalModel { name, existing, options } => {
                let model = ExternalModel::parse(&name, options)?;
                self.models.create_external(&name, model, self.settings().allowed_hosts.as_deref(), existing)?;
            }
            Statement::DropModel { name, if_exists } => {
                if !self.models.remove(&name) && !if_exists {
                    return Err(plan_datafusion_err!("model {name:?} is unknown; SHOW MODELS lists the known ones").into());
                }
            }
            Statement::LoadModel { name } => {
                let settings = self.settings();
                self.models.check_host(&name, settings.allowed_hosts.as_deref())?;
                self.models.set_device(device_options(&settings));
                self.models.backend(&name).await?;
            }
            Statement::UnloadModel { name } => {
                self.models.unload(&name).await?;
            }
            Statement::DescribeModel { name } => return Ok(Some(model_properties(self.models.describe(&name)?)?)),
            Statement::CreateSecret { name, persistent, existing, fields } => {
                self.secrets.create(&name, &fields, persistent, existing)?;
                self.models.forget_credential(&name);
            }
            Statement::DropSecret { name, persistent, if_exists } => {
                if !self.secrets.remove(&name, persistent)? && !if_exists {
                    let what = if persistent { "persistent secret" } else { "secret" };
                    return Err(plan_datafusion_err!("{what} {name:?} is unknown; SHOW SECRETS lists the known ones").into());
                }
                self.models.forget_credential(&name);
            }
            Statement::ShowSecrets => return Ok(Some(secret_table(&self.secrets.list()?)?)),
            Statement::CreatePrompt { definition, existing } => self.create_prompt(definition, existing)?,
            Statement::DropPrompt { name, if_exists } => {
                if !self.prompts().remove(&name) && !if_exists {
                    return Err(plan_datafusion_err!("prompt {name} is unknown; SHOW PROMPTS lists the known ones").into());
                }
            }
            Statement::DescribePrompt { name } => return Ok(Some(prompt_properties(self.prompts().describe(&name)?)?)),
            Statement::KillQuery { id } => {
                if !self.queries.kill(id) {
                    let message = "does not run; SELECT * FROM ai_queries() WHERE state = 'running' lists those that do";
                    return Err(plan_datafusion_err!("query {id} {message}").into());
                }
            }
            Statement::ClearCache { tier } => self.clear_cache(tier.as_deref()).await?,
            Statement::Reset { setting } => {
                let state = self.context.state_ref();
                let mut state = state.write();
                let settings = state.config_mut().options_mut().extensions.get_mut::<Settings>();
                settings.ok_or_else(|| plan_datafusion_err!("this session has no settings of refrain"))?.reset(&setting)?;
            }
            Statement::DataFusion(_) | Statement::Explain { .. } | Statement::ShowModels | Statement::ShowPrompts => {
                return Err(plan_datafusion_err!("not a statement of our own").into());
            }
        }
        Ok(None)
    }

    /// Forgets the answers of one tier: those of the session unless another is named, since what lies in a file is paid for and
    /// serves other sessions.
    async fn clear_cache(&self, tier: Option<&str>) -> Result<()> {
        let tier = match tier {
            None => Tier::Session,
            Some(name) => Tier::named(name).ok_or_else(|| {
                plan_datafusion_err!("there is no tier {name} of the answer cache; known: session, persistent, checkpoint")
            })?,
        };
        self.answer_cache().clear(tier, &self.settings()).await?;
        Ok(())
    }

    /// Adds a prompt or a version of one. Fails if its name is that of a function.
    fn create_prompt(&self, definition: PromptDefinition, existing: Existing) -> Result<()> {
        let (prompts, name) = (self.prompts(), definition.name.as_str());
        let state = self.context.state();
        let is_function = state.scalar_functions().contains_key(name)
            || state.aggregate_functions().contains_key(name)
            || state.window_functions().contains_key(name)
            || state.table_functions().contains_key(name);
        if is_function {
            return Err(plan_datafusion_err!("prompt {name}: there is a function of this name; choose another").into());
        }
        match existing {
            Existing::Keep if prompts.contains(name) => {}
            Existing::Replace => prompts.create_or_replace(definition)?,
            Existing::Keep | Existing::Refuse => prompts.create(definition)?,
        }
        Ok(())
    }
}

/// The columns of a statement of our own.
pub(crate) fn own_schema(statement: &Statement) -> SchemaRef {
    let names: &[&str] = match statement {
        Statement::DescribeModel { .. } | Statement::DescribePrompt { .. } => PROPERTIES,
        Statement::ShowSecrets => &["name", "type", "persistent"],
        _ => &[],
    };
    text_schema(names)
}

fn text_schema(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>()))
}

/// Lists what is known of a model, one property a row.
fn model_properties(model: ModelInfo) -> datafusion::common::Result<RecordBatch> {
    let ModelInfo {
        name,
        kind,
        model_type,
        location,
        max_context,
        dtype,
        dimensions,
        digest,
        state,
        device,
        loaded,
        held_bytes,
        gpu_bytes,
        capabilities,
        reported_version,
        credential,
    } = model;
    let load_seconds = loaded.as_ref().map(|facts| format!("{:.3}", facts.took.as_secs_f64()));
    let weight_bytes = loaded.as_ref().map(|facts| facts.weight_bytes.to_string());
    properties(vec![
        ("name", Some(name)),
        ("kind", Some(kind.to_owned())),
        ("type", Some(model_type.to_string())),
        ("location", Some(location)),
        ("max_context", max_context.map(|tokens| tokens.to_string())),
        ("dtype", dtype.map(str::to_owned)),
        ("dimensions", dimensions.map(|dimensions| dimensions.to_string())),
        ("digest", digest),
        ("state", Some(state.to_owned())),
        ("device", device),
        ("load_seconds", load_seconds),
        ("weight_bytes", weight_bytes),
        ("held_bytes", held_bytes.map(|bytes| bytes.to_string())),
        ("gpu_bytes", gpu_bytes.map(|bytes| bytes.to_string())),
        ("capabilities", Some(capabilities.join(", "))),
        ("reported_version", reported_version),
        ("credential", credential),
    ])
}

/// Lists what is known of the current version of a prompt, one property a row.
fn prompt_properties(prompt: NamedPrompt) -> datafusion::common::Result<RecordBatch> {
    let NamedPrompt { definition, version, is_current: _, created_at: _ } = prompt;
    let (signature, hash) = (definition.signature(), definition.hash());
    let PromptDefinition { name, parameters: _, return_type, model, template } = definition;
    properties(vec![
        ("name", Some(name)),
        ("version", Some(version.to_string())),
        ("signature", Some(signature)),
        ("return_type", Some(return_type)),
        ("model", model),
        ("template", Some(template)),
        ("hash", Some(hash)),
    ])
}

fn properties(rows: Vec<(&str, Option<String>)>) -> datafusion::common::Result<RecordBatch> {
    let (names, values): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let columns: [ArrayRef; 2] = [Arc::new(StringArray::from(names)), Arc::new(StringArray::from(values))];
    Ok(RecordBatch::try_new(text_schema(PROPERTIES), columns.into())?)
}

fn secret_table(secrets: &[SecretInfo]) -> datafusion::common::Result<RecordBatch> {
    let column = |value: fn(&SecretInfo) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(secrets.iter().map(value)))
    };
    let columns = vec![column(|s| s.name.clone()), column(|s| s.kind.clone()), column(|s| s.persistent.to_string())];
    Ok(RecordBatch::try_new(own_schema(&Statement::ShowSecrets), columns)?)
}
