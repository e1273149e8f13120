//! Programs of the user's that the shell starts: an editor, a pager.

use std::process::Command;

/// Exit code of the system's shell for a command that it cannot find.
pub(crate) const NOT_FOUND: i32 = 127;

/// Returns a command as the user writes it, with arguments of its own, ready to be given more.
pub(crate) fn command(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{text} \"$@\"")).arg(text);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_follow_those_of_the_command() {
        let output = command("printf '%s|'").args(["a b", "'c'"]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|'c'|");
        let missing = command("no-such-program-anywhere").stderr(std::process::Stdio::null()).status().unwrap();
        assert_eq!(missing.code(), Some(NOT_FOUND));
    }
}
