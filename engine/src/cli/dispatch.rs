//! What statements and shell commands do to a session.

use std::path::Path;

use super::catalog;
use super::closing;
use super::commands::{self, COMMANDS, Command};
use super::error::{Failure, Outcome};
use super::output::Sink;
use super::script::{self, Item};
use super::session::Session;

/// Scripts that include scripts may nest this deep.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on.
    Continue,
    /// The user wants to leave.
    Quit,
}

impl Session {
    /// Runs the items of a script. Without `bail` an error is told and the next item runs; the end is then `Told`, with the code
    /// of the first error. An interrupt and a closed output stop any script.
    pub(crate) async fn run_items(&mut self, items: Vec<Item>, bail: bool) -> Outcome<Flow> {
        self.run_nested(items, bail, 0).await
    }

    async fn run_nested(&mut self, items: Vec<Item>, bail: bool, depth: usize) -> Outcome<Flow> {
        let mut first_code = None;
        let mut flow = Flow::Continue;
        for item in items {
            match self.run_item(item, bail, depth).await {
                Ok(Flow::Continue) => {}
                Ok(Flow::Quit) => {
                    flow = Flow::Quit;
                    break;
                }
                Err(error) if bail || error.stops_any_script() => return Err(error),
                Err(error) => {
                    first_code.get_or_insert(error.exit_code());
                    error.tell();
                }
            }
        }
        first_code.map_or(Ok(flow), |code| Err(Failure::Told(code)))
    }

    async fn run_item(&mut self, item: Item, bail: bool, depth: usize) -> Outcome<Flow> {
        match item {
            Item::Statement(sql) => self.execute(&sql).await.map(|()| Flow::Continue),
            Item::Command(line) => match commands::parse(&line)? {
                Command::Quit => Ok(Flow::Quit),
                Command::Include(_) if depth == INCLUDE_DEPTH_MAX => {
                    Err(Failure::usage(format!("scripts include each other more than {INCLUDE_DEPTH_MAX} deep")))
                }
                Command::Include(path) => {
                    let items = script::items(&read(&path)?);
                    Box::pin(self.run_nested(items, bail, depth + 1)).await
                }
                command => self.carry_out(command).await.map(|()| Flow::Continue),
            },
        }
    }

    /// Runs a statement that does not become the last query.
    async fn execute_aside(&mut self, sql: &str) -> Outcome<()> {
        let kept = self.last.take();
        let outcome = self.execute(sql).await;
        self.last = kept;
        outcome
    }

    /// Carries out a command that runs no script.
    async fn carry_out(&mut self, command: Command) -> Outcome<()> {
        match command {
            Command::Describe(None) | Command::Tables => {
                let tables = self.place.tables().await?;
                self.show(&tables)
            }
            Command::Describe(Some(table)) => {
                let columns = self.place.columns(&table).await?;
                self.show(&columns)
            }
            Command::Models => {
                let models = self.place.models().await?;
                self.show(&models)
            }
            Command::Functions(pattern) => {
                let functions = self.place.functions(pattern.as_deref().unwrap_or("ai_*")).await?;
                self.show(&functions)
            }
            Command::Prompts => self.execute_aside("SHOW PROMPTS").await,
            Command::Explain(sql) => {
                let sql = self.this_or_last(sql)?;
                self.execute_aside(&format!("EXPLAIN {sql}")).await
            }
            Command::Estimate(sql) => {
                let sql = self.this_or_last(sql)?;
                let estimate = self.interrupts.race(self.place.estimate(&sql)).await??;
                self.print(&estimate)
            }
            Command::Usage => match &self.last {
                Some(last) => self.print(&closing::usage_report(last.account.id, &last.account.usage)),
                None => Err(no_query()),
            },
            Command::Errors => {
                let last = self.last.as_ref().ok_or_else(no_query)?;
                let errors = catalog::row_errors(last.account.failed.clone())?;
                self.show(&errors)
            }
            Command::Kill(id) => self.run_quietly(&format!("KILL QUERY {id}")).await,
            Command::ClearCache(tier) => {
                let tier = tier.map_or_else(String::new, |tier| format!("'{}'", tier.replace('\'', "''")));
                self.run_quietly(&format!("CALL ai_cache_clear({tier})")).await
            }
            Command::Model(Some(name)) => self.set("refrain.model", &name).await,
            Command::Model(None) => {
                let model = self.place.default_model().await?;
                self.print(&model)
            }
            Command::Set(Some((name, Some(value)))) => self.set(&name, &value).await,
            Command::Set(name) => {
                let pattern = name.map_or_else(|| "refrain.*".to_owned(), |(name, _)| full_name(&name));
                let settings = self.place.settings(&pattern).await?;
                self.show(&settings)
            }
            Command::Connect(to) => self.connect_to(to.as_deref()).await,
            Command::ConnInfo => {
                let about = self.place.about().await?;
                self.print(&about)
            }
            Command::Help => self.print(&help()),
            Command::HelpOn(None) => {
                self.print("\\h FUNCTION explains a function, \\df lists them, \\? lists the shell's commands")
            }
            Command::HelpOn(Some(function)) => {
                let text = self.place.help_on(&function).await?;
                self.print(&text)
            }
            Command::Output(file) => {
                self.sink.flush()?;
                self.sink = file.map_or_else(|| Ok(Sink::stdout()), |path| Sink::file(&path))?;
                Ok(())
            }
            command => {
                self.change_view(command);
                Ok(())
            }
        }
    }

    /// Carries out the commands that change only how results are shown, and tells the new state.
    fn change_view(&mut self, command: Command) {
        let view = &mut self.view;
        let state = match command {
            Command::Timing(value) => {
                view.timing = value.unwrap_or(!view.timing);
                format!("timing is {}", on_or_off(view.timing))
            }
            Command::Expanded(value) => {
                view.expanded = value.unwrap_or(!view.expanded);
                format!("expanded display is {}", on_or_off(view.expanded))
            }
            Command::Mode(format) => {
                view.format = format.unwrap_or(view.format);
                format!("output format is {}", view.format.name())
            }
            Command::MaxRows(limit) => {
                view.max_rows = limit.unwrap_or(view.max_rows);
                view.max_rows
                    .map_or_else(|| "all rows are shown".to_owned(), |rows| format!("at most {rows} rows are shown"))
            }
            Command::NullValue(text) => {
                view.null = text;
                view.null.as_ref().map_or_else(
                    || "NULL is shown by the format's rule".to_owned(),
                    |text| format!("NULL is shown as {text:?}"),
                )
            }
            _ => return,
        };
        if self.view.interactive {
            self.notice(&state);
        }
    }

    /// Sets a session setting; a name without a prefix is one of ours.
    pub(crate) async fn set(&self, name: &str, value: &str) -> Outcome<()> {
        let name = full_name(name);
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
            return Err(Failure::usage(format!("{name:?} is no name of a setting")));
        }
        self.run_quietly(&format!("SET {name} = '{}'", value.replace('\'', "''"))).await
    }

    /// Runs a statement that gives no rows, and says nothing of it.
    async fn run_quietly(&self, statement: &str) -> Outcome<()> {
        let mut run = self.place.start(statement).await?;
        while run.next().await?.is_some() {}
        Ok(())
    }

    fn this_or_last(&self, sql: Option<String>) -> Outcome<String> {
        sql.or_else(|| self.last.as_ref().map(|last| last.sql.clone())).ok_or_else(no_query)
    }
}

/// Reads a script.
pub(crate) fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, error))
}

/// The version of this program.
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn full_name(setting: &str) -> String {
    if setting.contains('.') { setting.to_owned() } else { format!("refrain.{setting}") }
}

fn no_query() -> Failure {
    Failure::usage("no query has run yet")
}

fn on_or_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn help() -> String {
    let mut text = "SQL statements end with a semicolon. Ctrl-C stops a query, Ctrl-D leaves.\n\n".to_owned();
    for entry in COMMANDS {
        let usage = format!("\\{} {}", entry.name, entry.arguments);
        let alias = entry.dot_alias.map_or_else(String::new, |alias| format!(" (.{alias})"));
        text += &format!("  {usage:22} {}{alias}\n", entry.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refrain;
    use crate::cli::interrupt::Interrupts;
    use crate::cli::output::Format;
    use crate::cli::session::View;
    use std::sync::Arc;
    use tokio::sync::watch;

    struct Bench {
        session: Session,
        interrupt: watch::Sender<u64>,
        folder: tempfile::TempDir,
    }

    async fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let (interrupt, interrupts) = Interrupts::manual();
        let view = View {
            format: Format::Csv,
            expanded: false,
            timing: false,
            max_rows: None,
            null: None,
            interactive: false,
            quiet: true,
            strict_rows: false,
        };
        let db = Refrain::builder().build().await.unwrap();
        let sink = Sink::file(&folder.path().join("out")).unwrap();
        let place = Arc::new(db.clone());
        Bench {
            session: Session {
                db,
                place,
                interrupts,
                sink,
                view,
                #[cfg(feature = "flight")]
                server: Default::default(),
                last: None,
            },
            interrupt,
            folder,
        }
    }

    impl Bench {
        async fn run(&mut self, script: &str, bail: bool) -> Outcome<Flow> {
            self.session.run_items(script::items(script), bail).await
        }

        fn output(&self) -> String {
            std::fs::read_to_string(self.folder.path().join("out")).unwrap()
        }
    }

    #[tokio::test]
    async fn a_script_writes_its_results_in_order() {
        let mut bench = bench().await;
        let script = "create table t as values (1, 'a'), (2, null);\nselect * from t order by 1;\n\\mode ndjson\nselect count(*) n from t;\n\\q\nselect 9;";
        assert_eq!(bench.run(script, true).await.unwrap(), Flow::Quit);
        assert!(bench.output().ends_with("column1,column2\n1,a\n2,\n{\"n\":2}\n"), "{}", bench.output());
    }

    #[tokio::test]
    async fn an_error_stops_a_script_unless_told_otherwise() {
        let mut stopped = bench().await;
        assert_eq!(stopped.run("select nope; select 1 a", true).await.unwrap_err().exit_code(), 1);
        assert_eq!(stopped.output(), "");
        let mut went_on = bench().await;
        assert_eq!(went_on.run("select nope; \\nope\nselect 1 a", false).await.unwrap_err().exit_code(), 1);
        assert_eq!(went_on.output(), "a\n1\n");
    }

    #[tokio::test]
    async fn an_interrupt_ends_the_script() {
        let mut bench = bench().await;
        bench.interrupt.send_modify(|count| *count += 1);
        let error = bench.run("select 1; select 2", false).await.unwrap_err();
        assert_eq!((error.exit_code(), bench.output().as_str()), (130, ""));
    }

    #[tokio::test]
    async fn scripts_include_scripts_but_not_forever() {
        let mut bench = bench().await;
        let path = bench.folder.path().join("own.sql");
        std::fs::write(&path, format!("select 1 a;\n\\i {}\n", path.display())).unwrap();
        let error = bench.run(&format!("\\i {}", path.display()), true).await.unwrap_err();
        assert!(error.to_string().contains("more than 16 deep"));
        assert_eq!(bench.output().lines().count(), 2 * INCLUDE_DEPTH_MAX);
    }

    #[tokio::test]
    async fn listings_are_data() {
        let mut bench = bench().await;
        bench.run("create table t(a int not null, b text);\n\\d t\n", true).await.unwrap();
        assert!(bench.output().contains("a,Int32,NO\n"), "{}", bench.output());
        bench.run("\\dt\n\\df abs\n\\set datafusion.execution.batch_size", true).await.unwrap();
        let output = bench.output();
        for expected in [",t,", "\nabs,scalar,", "datafusion.execution.batch_size,"] {
            assert!(output.contains(expected), "{expected}: {output}");
        }
        assert!(bench.run("\\d nope", true).await.is_err());
    }

    #[tokio::test]
    async fn explain_shows_the_last_query_and_keeps_it() {
        let mut bench = bench().await;
        assert!(bench.run("\\explain", true).await.is_err());
        bench.run("\\mode table\nselect 1 a;\n\\explain\n\\explain\n\\usage", true).await.unwrap();
        assert_eq!(bench.session.last.as_ref().unwrap().sql, "select 1 a");
        assert_eq!(bench.output().matches("── physical_plan\n").count(), 2);
    }

    #[tokio::test]
    async fn settings_are_set_by_name_and_value() {
        let mut bench = bench().await;
        bench
            .run("\\set datafusion.execution.batch_size 77\nselect 1 a; show datafusion.execution.batch_size", true)
            .await
            .unwrap();
        assert!(bench.output().contains("77"), "{}", bench.output());
        assert_eq!(bench.run("\\set a;b 1", true).await.unwrap_err().exit_code(), 2);
    }

    #[tokio::test]
    async fn results_go_where_they_are_sent() {
        let mut bench = bench().await;
        let other = bench.folder.path().join("other.csv");
        bench.run(&format!("\\o '{}'\nselect 1 a; \n\\o\n", other.display()), true).await.unwrap();
        assert_eq!(std::fs::read_to_string(other).unwrap(), "a\n1\n");
        assert_eq!(bench.output(), "");
    }
}
