//! The question before a statement that is expected to be dear: `refrain.confirm_above`.

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::error::{Failure, Outcome};
use super::numbers::{counted, rough, short};
use super::session::Session;
use super::shell;
use crate::forecast::Forecast;

/// Questions that are asked of the model to know better what a statement costs.
const SAMPLE: usize = 100;

/// What the user has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// A sample first.
    Sample,
}

impl Session {
    /// Asks the user before a statement that is expected to be dear. Fails if the user does not want it to run.
    pub(crate) async fn confirm(&mut self, sql: &str) -> Outcome<()> {
        if !self.asks {
            return Ok(());
        }
        let Some(mut forecast) = self.interrupts.race(self.place.forecast(sql)).await?? else { return Ok(()) };
        loop {
            match tokio::task::block_in_place(|| ask(&forecast))? {
                Answer::Yes => return Ok(()),
                Answer::No => return Err(Failure::Declined),
                Answer::Sample => {
                    self.interrupts.reset();
                    match self.execute_aside(&format!("EXPLAIN (SAMPLE {SAMPLE}) {sql}")).await {
                        Ok(()) => {}
                        Err(error) if error.stops_any_script() => return Err(error),
                        Err(error) => error.tell(),
                    }
                    // The sample has shown how fast the model is, and what its answers are like.
                    let better = self.interrupts.race(self.place.forecast(sql)).await??;
                    forecast = better.unwrap_or(forecast);
                }
            }
        }
    }
}

/// `≈ 41 200 calls, 3.1 M prompt tokens, ≈ 9 min. Run? [y/N/s=sample 100] `
fn question(forecast: &Forecast) -> String {
    let (calls, tokens) = (counted(forecast.calls, "call"), short(forecast.prompt_tokens as f64));
    let time = forecast.seconds.map_or_else(|| "for a time that is not known yet".to_owned(), |s| format!("≈ {}", rough(s)));
    let more = if forecast.has_more { ", and calls that depend on their answers" } else { "" };
    format!("≈ {calls}, {tokens} prompt tokens, {time}{more}. Run? [y/N/s=sample {SAMPLE}] ")
}

/// Asks until the answer is one; Ctrl-C, Ctrl-D and nothing are no.
fn ask(forecast: &Forecast) -> Outcome<Answer> {
    let mut editor = DefaultEditor::with_config(shell::terminal().build()).map_err(shell::unusable)?;
    loop {
        let line = match editor.readline(&question(forecast)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(Answer::No),
            Err(error) => return Err(shell::unusable(error)),
        };
        if let Some(answer) = answer(&line) {
            return Ok(answer);
        }
    }
}

fn answer(line: &str) -> Option<Answer> {
    match line.trim().to_lowercase().as_str() {
        "y" | "yes" => Some(Answer::Yes),
        "" | "n" | "no" => Some(Answer::No),
        "s" | "sample" => Some(Answer::Sample),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_tells_what_is_known() {
        let forecast = Forecast { calls: 41_200, prompt_tokens: 3_100_000, seconds: Some(545.0), has_more: false };
        assert_eq!(question(&forecast), "≈ 41 200 calls, 3.1 M prompt tokens, ≈ 9 min. Run? [y/N/s=sample 100] ");
        let unknown = Forecast { calls: 1, prompt_tokens: 90, seconds: None, has_more: true };
        let expected = "≈ 1 call, 90 prompt tokens, for a time that is not known yet, and calls that depend on their answers. \
                        Run? [y/N/s=sample 100] ";
        assert_eq!(question(&unknown), expected);
    }

    #[test]
    fn no_is_what_is_not_said() {
        assert_eq!(answer(" Y "), Some(Answer::Yes));
        assert_eq!(answer(""), Some(Answer::No));
        assert_eq!(answer("s"), Some(Answer::Sample));
        assert_eq!(answer("why"), None);
    }
}
