//! What statements and shell commands do to a session.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::catalog;
use super::closing;
use super::commands::{self, COMMANDS, Command};
use super::copy::Copy;
use super::edit;
use super::error::{Failure, Outcome};
use super::output::{Format, Sink};
use super::script::{self, Item};
use super::session::{Once, Session};
use crate::redact;

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
        let command = match item {
            Item::Statement(sql) => Command::Go(Some(sql)),
            Item::Command(line) => commands::parse(&line)?,
            Item::Given { sql, command } => commands::parse(&command)?.of(sql)?,
        };
        match command {
            Command::Quit => Ok(Flow::Quit),
            Command::Include(_) | Command::Edit(_) if depth == INCLUDE_DEPTH_MAX => {
                Err(Failure::usage(format!("scripts include each other more than {INCLUDE_DEPTH_MAX} deep")))
            }
            Command::Include(path) => {
                let items = script::items(&read(&path)?);
                Box::pin(self.run_nested(items, bail, depth + 1)).await
            }
            Command::Edit(sql) => {
                let Some(text) = self.edit(sql)? else { return Ok(Flow::Continue) };
                let items = script::items(&text);
                self.edited = Some(text);
                Box::pin(self.run_nested(items, bail, depth + 1)).await
            }
            command => self.carry_out(command).await.map(|()| Flow::Continue),
        }
    }

    /// Runs a statement that does not become the last query.
    pub(crate) async fn execute_aside(&mut self, sql: &str) -> Outcome<()> {
        let (last, kept) = (self.last.take(), self.kept.take());
        let outcome = self.execute(sql).await;
        (self.last, self.kept) = (last, kept);
        outcome
    }

    /// Runs a statement once the user agrees to what it costs.
    async fn execute_confirmed(&mut self, sql: &str) -> Outcome<()> {
        self.confirm(sql).await?;
        self.execute(sql).await
    }

    /// Runs a statement again and again until Ctrl-C.
    async fn watch(&mut self, sql: &str, interval: Duration) -> Outcome<()> {
        self.confirm(sql).await?;
        // A page that waits for keys would stop the watch.
        let is_paged = std::mem::replace(&mut self.pager.is_on, false);
        let outcome = loop {
            if let Err(error) = self.execute(sql).await {
                break Err(error);
            }
            if let Err(error) = self.interrupts.race(tokio::time::sleep(interval)).await {
                break Err(error);
            }
        };
        self.pager.is_on = is_paged;
        outcome
    }

    /// Writes all rows of a query to a file of this machine.
    async fn copy(&mut self, copy: &Copy) -> Outcome<()> {
        self.confirm(&copy.sql).await?;
        self.once = Some(Once { sink: Sink::file(&copy.file)?, format: Some(copy.format) });
        self.execute(&copy.sql).await
    }

    /// Shows the last result again.
    fn show_last(&mut self) -> Outcome<()> {
        let Some(kept) = &self.kept else {
            return Err(Failure::usage("there is no result to show again; the shell keeps the last one of a prompt"));
        };
        let Some(batches) = kept.batches.clone() else {
            return Err(Failure::usage("the last result was too large to be kept; \\copy writes one to a file"));
        };
        let schema = Arc::clone(&kept.schema);
        self.show_all(schema, &batches)
    }

    /// Lets the user edit a statement, by default the last one; `None` if nothing was saved. What creates a secret is not written to a file.
    fn edit(&mut self, sql: Option<String>) -> Outcome<Option<String>> {
        if !self.view.interactive {
            return Err(Failure::usage("\\e needs a terminal"));
        }
        let sql = sql.or_else(|| self.last.as_ref().map(|last| last.sql.clone()));
        let sql = sql.filter(|sql| !redact::holds_secret(sql)).map_or_else(String::new, |sql| format!("{sql};\n"));
        let edited = tokio::task::block_in_place(|| edit::edited(&edit::editor(), &sql));
        // Ctrl-C in the editor was meant for the editor.
        self.interrupts.reset();
        edited
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
            Command::Go(sql) => {
                let sql = self.this_or_last(sql)?;
                self.execute_confirmed(&sql).await
            }
            Command::GoExpanded(sql) => {
                let sql = self.this_or_last(sql)?;
                let usual = std::mem::replace(&mut self.view.format, Format::Expanded);
                let outcome = self.execute_confirmed(&sql).await;
                self.view.format = usual;
                outcome
            }
            Command::Watch(sql, interval) => {
                let sql = self.this_or_last(sql)?;
                self.watch(&sql, interval).await
            }
            Command::Copy(copy) => self.copy(&copy).await,
            Command::Last => self.show_last(),
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
            Command::Once(file) => {
                self.once = Some(Once { sink: Sink::file(&file)?, format: None });
                Ok(())
            }
            Command::ParquetFile(file) => {
                self.once = Some(Once { sink: Sink::file(&file)?, format: Some(Format::Parquet) });
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
            Command::Pager(change) => {
                self.pager.change(change);
                format!("the pager {} is {}", self.pager.command, on_or_off(self.pager.is_on))
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
        self.allow(statement).await?;
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
    let mut text =
        "SQL statements end with a semicolon, or with \\g, \\gx, \\watch or \\e. Ctrl-C stops a query, Ctrl-D leaves.\n\n"
            .to_owned();
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
    use crate::cli::session::View;
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
        Bench { session: Session::over(db, interrupts, sink, view), interrupt, folder }
    }

    impl Bench {
        async fn run(&mut self, script: &str, bail: bool) -> Outcome<Flow> {
            self.session.run_items(script::items(script), bail).await
        }

        fn output(&self) -> String {
            self.file("out")
        }

        /// A path in the folder of the test, as a command names it.
        fn path(&self, name: &str) -> String {
            self.folder.path().join(name).display().to_string()
        }

        fn file(&self, name: &str) -> String {
            std::fs::read_to_string(self.folder.path().join(name)).unwrap()
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

    #[tokio::test]
    async fn one_result_goes_elsewhere() {
        let mut bench = bench().await;
        let script = format!("\\once '{}'\n\\mode ndjson\nselect 1 a; select 2 a;", bench.path("once.json"));
        bench.run(&script, true).await.unwrap();
        assert_eq!((bench.file("once.json").as_str(), bench.output().as_str()), ("{\"a\":1}\n", "{\"a\":2}\n"));
    }

    #[tokio::test]
    async fn copies_have_the_format_of_their_ending_and_all_rows() {
        let mut bench = bench().await;
        bench.session.view.max_rows = Some(1);
        let copy = |source: &str, file: &str| format!("\\copy {source} to '{}'\n", bench.path(file));
        let script = "create table t as values (1), (2);\n".to_owned()
            + &copy("t", "t.tsv")
            + &copy("(select column1 as a from t order by 1 desc)", "t.md")
            + &copy("t", "t.parquet")
            + &format!("select sum(column1) as s from '{}';", bench.path("t.parquet"));
        bench.run(&script, true).await.unwrap();
        assert_eq!(bench.file("t.tsv"), "column1\n1\n2\n");
        assert_eq!(bench.file("t.md"), "| a |\n|---|\n| 2 |\n| 1 |\n");
        assert_eq!(bench.output(), "s\n3\n");
    }

    #[tokio::test]
    async fn a_parquet_file_takes_the_next_result() {
        let mut bench = bench().await;
        let file = bench.path("t.parquet");
        bench.run(&format!("\\mode parquet '{file}'\nselect 7 a; select a from '{file}';"), true).await.unwrap();
        assert_eq!(bench.output(), "a\n7\n");
    }

    #[tokio::test]
    async fn the_last_statement_runs_again() {
        let mut bench = bench().await;
        assert_eq!(bench.run("\\g", true).await.unwrap_err().exit_code(), 2);
        bench.run("select 1 a;\n\\g\nselect 2 a \\gx\n\\g", true).await.unwrap();
        let expanded = format!("─[ 1 ]{}\na │ 2\n", "─".repeat(20));
        assert_eq!(bench.output(), format!("a\n1\na\n1\n{expanded}a\n2\n"));
    }

    #[tokio::test]
    async fn a_watch_ends_with_an_interrupt() {
        let mut bench = bench().await;
        let interrupt = bench.interrupt.clone();
        let out = bench.folder.path().join("out");
        let seen_twice = async move {
            while std::fs::read_to_string(&out).unwrap().matches("a\n1\n").count() < 2 {
                tokio::task::yield_now().await;
            }
            interrupt.send_modify(|count| *count += 1);
        };
        let (outcome, ()) = tokio::join!(bench.run("select 1 a \\watch 0.001", true), seen_twice);
        assert_eq!(outcome.unwrap_err().exit_code(), 130);
    }

    #[tokio::test]
    async fn the_last_result_is_shown_whole_and_in_another_form() {
        let mut bench = bench().await;
        assert_eq!(bench.run("\\last", true).await.unwrap_err().exit_code(), 2);
        bench.session.view.interactive = true;
        let script =
            "select value a from generate_series(1, 2); create table t (b int);\n\\mode ndjson\n\\explain select 1\n\\once ";
        bench.run(&format!("{script}{}\n\\last", bench.path("last")), true).await.unwrap();
        assert_eq!(bench.file("last"), "{\"a\":1}\n{\"a\":2}\n");
    }

    #[tokio::test]
    async fn what_changes_something_is_refused_where_it_may_only_read() {
        let mut bench = bench().await;
        bench.run("create table t as values (1);", true).await.unwrap();
        bench.session.is_readonly = true;
        for refused in [
            "insert into t values (2)",
            "create table u as select 1",
            "create temporary table u as select 1",
            "drop table t",
            "copy t to 'x.csv'",
            "create view v as select 1",
            "explain analyze insert into t values (2)",
            "prepare p as insert into t values (2)",
            "drop model if exists m",
            "call ai_cache_clear()",
            "\\cache clear",
        ] {
            let error = bench.run(refused, true).await.unwrap_err();
            assert!(matches!(error, Failure::ReadOnly), "{refused}: {error}");
            assert_eq!(error.exit_code(), 1);
        }
        let read = "select * from t; show tables; describe t; show models; set refrain.seed = 3; reset refrain.seed;\n\\set seed 4\n\
                    explain insert into t values (2); explain analyze select * from t; prepare q as select 1;";
        bench.run(read, true).await.unwrap();
    }

    #[tokio::test]
    async fn an_editor_needs_a_terminal() {
        assert!(bench().await.run("\\e", true).await.unwrap_err().to_string().contains("terminal"));
    }
}
