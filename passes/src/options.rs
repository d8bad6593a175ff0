//! Options of passes: what can be tuned from the command line, `-x pass:option=value`.
//!
//! An option *is* a field of its pass: [`Pass::options`] lends the fields out with a name, bounds and a line of help. So one
//! list serves setting, checking and listing, a pass's own code reads plain fields, and the value of a fresh pass is
//! the default. Alternative rejected: a map from names to values in the context, which every pass would have to parse.

use std::fmt;
use std::ops::RangeInclusive;

use crate::error::{PassError, Result};
use crate::pass::Pass;

/// A field of a pass that may be set.
#[derive(Debug)]
pub enum Slot<'a> {
    /// A real number within bounds.
    Number(&'a mut f64, RangeInclusive<f64>),
    /// A whole number within bounds.
    Count(&'a mut usize, RangeInclusive<usize>),
    /// On or off.
    Switch(&'a mut bool),
}

/// An option of a pass.
#[derive(Debug)]
pub struct PassOption<'a> {
    /// Kebab-case.
    pub name: &'static str,
    /// One line.
    pub help: &'static str,
    /// Where its value is kept.
    pub slot: Slot<'a>,
}

impl<'a> PassOption<'a> {
    /// A real number.
    pub fn number(name: &'static str, value: &'a mut f64, bounds: RangeInclusive<f64>, help: &'static str) -> Self {
        Self { name, help, slot: Slot::Number(value, bounds) }
    }

    /// A whole number.
    pub fn count(name: &'static str, value: &'a mut usize, bounds: RangeInclusive<usize>, help: &'static str) -> Self {
        Self { name, help, slot: Slot::Count(value, bounds) }
    }

    /// On or off.
    pub fn switch(name: &'static str, value: &'a mut bool, help: &'static str) -> Self {
        Self { name, help, slot: Slot::Switch(value) }
    }

    /// What values it takes.
    #[must_use]
    pub fn domain(&self) -> String {
        match &self.slot {
            Slot::Number(_, bounds) => format!("a number from {} to {}", bounds.start(), bounds.end()),
            Slot::Count(_, bounds) => format!("a whole number from {} to {}", bounds.start(), bounds.end()),
            Slot::Switch(_) => "`true` or `false`".into(),
        }
    }

    /// Sets it from text; `false` when the text is not in its domain.
    fn set(&mut self, text: &str) -> bool {
        match &mut self.slot {
            Slot::Number(value, bounds) => store(*value, text, |v| bounds.contains(v)),
            Slot::Count(value, bounds) => store(*value, text, |v| bounds.contains(v)),
            Slot::Switch(value) => store(*value, text, |_| true),
        }
    }
}

/// Its value.
impl fmt::Display for PassOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.slot {
            Slot::Number(value, _) => write!(f, "{value}"),
            Slot::Count(value, _) => write!(f, "{value}"),
            Slot::Switch(value) => write!(f, "{value}"),
        }
    }
}

fn store<T: std::str::FromStr>(slot: &mut T, text: &str, legal: impl Fn(&T) -> bool) -> bool {
    match text.parse().ok().filter(legal) {
        Some(value) => {
            *slot = value;
            true
        }
        None => false,
    }
}

/// Applies settings, each `pass:option=value`, to a pipeline. Later ones win.
///
/// # Errors
/// [`PassError::Option`] for a pass that does not exist, an option that it has not, or a value out of bounds;
/// the message lists what there is.
pub fn apply(passes: &mut [Box<dyn Pass>], settings: &[String]) -> Result<()> {
    settings.iter().try_for_each(|setting| {
        apply_one(passes, setting).map_err(|reason| PassError::Option { setting: setting.clone(), reason })
    })
}

fn apply_one(passes: &mut [Box<dyn Pass>], setting: &str) -> std::result::Result<(), String> {
    let parts = setting.split_once(':').and_then(|(pass, rest)| Some((pass, rest.split_once('=')?)));
    let (pass, (name, value)) = parts.ok_or("write pass:option=value, for example calibrate:headroom=2")?;
    let names: Vec<&str> = passes.iter().map(|p| p.name()).collect();
    let unknown = format!("there is no pass `{pass}`; there are {}", names.join(", "));
    let pass = passes.iter_mut().find(|p| p.name() == pass).ok_or(unknown)?;
    let missing = no_option(pass.as_mut(), name);
    let mut options = pass.options();
    let option = options.iter_mut().find(|o| o.name == name).ok_or(missing)?;
    let domain = option.domain();
    if option.set(value) { Ok(()) } else { Err(format!("`{name}` takes {domain}, not `{value}`")) }
}

fn no_option(pass: &mut dyn Pass, name: &str) -> String {
    let known: Vec<String> = pass.options().iter().map(|o| format!("{}={o}", o.name)).collect();
    let known = if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
    format!("pass `{}` has no option `{name}`; {known}", pass.name())
}

/// The `//!` documentation that heads a source file.
#[must_use]
pub fn module_docs(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    fn error(setting: &str) -> String {
        apply(&mut registry::pipeline(), &[setting.to_owned()]).unwrap_err().to_string()
    }

    #[test]
    fn a_setting_reaches_its_field() {
        let mut passes = registry::pipeline();
        let settings = ["exact-softmax:alpha=0.25", "insert-bootstraps:max-slots=8", "insert-rescale:exact-sums=false"];
        apply(&mut passes, &settings.map(str::to_owned)).unwrap();
        let mut value = |pass: &str, option: &str| {
            let pass = passes.iter_mut().find(|p| p.name() == pass).unwrap();
            pass.options().iter().find(|o| o.name == option).unwrap().to_string()
        };
        assert_eq!(value("exact-softmax", "alpha"), "0.25");
        assert_eq!(value("insert-bootstraps", "max-slots"), "8");
        assert_eq!(value("insert-rescale", "exact-sums"), "false");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_there_is() {
        insta::assert_snapshot!(
            [
                error("alpha=0.25"),
                error("softmax:alpha=0.25"),
                error("exact-softmax:beta=0.25"),
                error("fuse-unary:alpha=1"),
                error("exact-softmax:alpha=NaN"),
                error("insert-bootstraps:max-slots=0"),
                error("insert-bootstraps:max-slots=1.5"),
                error("insert-rescale:exact-sums=yes"),
            ]
            .join("\n")
        );
    }

    #[test]
    fn every_pass_is_documented_and_its_defaults_are_legal() {
        for pass in &mut registry::pipeline() {
            let name = pass.name();
            assert!(!module_docs(pass.source()).is_empty(), "{name}: give `source` the file itself, include_str!");
            for option in &mut pass.options() {
                let default = option.to_string();
                assert!(option.set(&default), "{name}:{} = {default} is not {}", option.name, option.domain());
                assert!(!option.help.is_empty());
            }
        }
    }
}
