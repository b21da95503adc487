//! Chat templates: Jinja as transformers reads it, within bounds.
//!
//! A template is a program that comes with a model. It gets no files and no clock; its size, its steps, its depth and what
//! it writes are bounded.

mod budget;
mod charged;
mod date;
mod filters;
mod generation;
mod json;
mod methods;
mod output;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hash::hex;
use crate::record::Message;

/// Steps of one rendering; a message takes some hundred.
const STEPS: u64 = 2_000_000;
/// Calls within calls, and blocks within blocks.
const DEPTH: usize = 200;
/// The longest tag, in bytes: it bounds how deep one expression is. Those of templates in use have some thousand.
const LONGEST_TAG: usize = 1 << 15;
/// Stack of the thread that renders: values nested as deep as [`STEPS`] allows are dropped level by level. It is reserved,
/// not used.
const STACK: usize = 512 << 20;
/// 26 July 2024: a fixed day, so that the same data gives the same ids whenever it is read.
const NOW: i64 = 1_721_952_000;

/// The named chat templates of one tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    names: Vec<String>,
    variables: Map<String, serde_json::Value>,
    /// All that rendering depends on: templates, variables and, where it is read, the date.
    identity: String,
    /// A hash of templates and variables alone.
    digest: String,
    reads_clock: bool,
}

impl ChatTemplate {
    /// Templates by name, one of them `default`, and the variables they may read beside the conversation.
    ///
    /// # Errors
    /// When a template does not parse, or none is the default.
    pub(crate) fn new(templates: Vec<(String, String)>, variables: Map<String, serde_json::Value>) -> Result<Self> {
        // The library reads chains such as `a.b.c` level by level, however long they are.
        deep_stack(|| Self::read(templates, variables))
    }

    fn read(templates: Vec<(String, String)>, variables: Map<String, serde_json::Value>) -> Result<Self> {
        let names: Vec<String> = templates.iter().map(|(name, _)| name.clone()).collect();
        if !names.iter().any(|name| name == "default") {
            return Err(Error::NoDefaultTemplate { found: names });
        }
        let mut hash = Sha256::new();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| explained("default", &e))?;
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(STEPS));
        environment.set_recursion_limit(DEPTH);
        environment.set_unknown_method_callback(methods::call);
        filters::add(&mut environment);
        budget::add(&mut environment);
        date::add(&mut environment, NOW);
        let mut reads_clock = false;
        for (name, text) in templates {
            hash.update(format!("{} {} {name}{text}", name.len(), text.len()));
            reads_clock |= text.contains("strftime_now");
            if let Some(line) = generation::long_tag(&text, LONGEST_TAG) {
                return Err(Error::Template {
                    name,
                    line: Some(line),
                    message: format!("a tag of more than {LONGEST_TAG} bytes"),
                });
            }
            let text = generation::transparent(&text);
            // The first reading has the library's own errors, at their columns.
            let text = charged::charged(&text, &name, syntax.clone()).map_err(|e| explained(&name, &e))?;
            environment
                .add_template_owned(name.clone(), text)
                .map_err(|e| explained(&name, &e))?;
        }
        hash.update(serde_json::Value::Object(variables.clone()).to_string());
        let digest = hex(&hash.finalize());
        let new = Self {
            environment: Arc::new(environment),
            names,
            variables,
            identity: String::new(),
            digest,
            reads_clock,
        };
        Ok(new.identified(NOW))
    }

    /// The same templates at another date: seconds since 1970 of the local calendar.
    pub(crate) fn with_now(mut self, seconds: i64) -> Self {
        let mut environment = Environment::clone(&self.environment);
        date::add(&mut environment, seconds);
        self.environment = Arc::new(environment);
        self.identified(seconds)
    }

    fn identified(mut self, seconds: i64) -> Self {
        let date = if self.reads_clock {
            seconds.to_string()
        } else {
            String::new()
        };
        self.identity = format!("{} {date}", self.digest);
        self
    }

    /// Whether a template asks for the date.
    pub(crate) fn reads_clock(&self) -> bool {
        self.reads_clock
    }

    /// A text that is the same for templates that write the same.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// What the template makes of a conversation. With `tools` in `extra` it is the template `tool_use` where there is
    /// one. Call it from within [`deep_stack`].
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        let read = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        self.write(Value::from(Serde(messages)), read, add_generation_prompt, extra)
    }

    /// The same for messages of any form, which take so many bytes.
    fn write(
        &self,
        messages: Value,
        read: usize,
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        let mut variables = self.variables.clone();
        variables.insert("tools".into(), serde_json::Value::Null);
        variables.insert("documents".into(), serde_json::Value::Null);
        for (name, value) in extra {
            variables.insert(name.clone(), value.clone());
        }
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let tools = variables.get("tools").is_some_and(|tools| !tools.is_null());
        let tool_use = tools && self.names.iter().any(|name| name == "tool_use");
        let name = if tool_use { "tool_use" } else { "default" };
        let context = Value::from(Serde(variables));
        let context = minijinja::context! { messages, ..context };
        let template = self.environment.get_template(name).map_err(|e| explained(name, &e))?;
        let mut output = output::Bounded::new(read);
        // The template library panics on a few expressions, such as an empty list backwards. It is asked by shared reference
        // and what it was about to write is dropped.
        budget::begin(read);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let done = template.render_captured_to(context, &mut output);
            done.map(|_| ()).map_err(|e| explained(name, &e))
        }));
        match done {
            Ok(Ok(())) => output.into_text(name),
            Ok(Err(_)) if output.is_full() => Err(output.too_long(name)),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(Error::Template {
                name: name.to_owned(),
                line: None,
                message: "the template library gave up".to_owned(),
            }),
        }
    }
}

/// The template library's error as ours: where in the template, or what the template itself complains about.
fn explained(name: &str, error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut line = error.line();
    let mut innermost = error;
    while let Some(one) = cause {
        if let Some(complaint) = one.downcast_ref::<filters::Complaint>() {
            return Error::TemplateComplaint {
                message: complaint.0.clone(),
            };
        }
        if let Some(found) = one.downcast_ref::<minijinja::Error>() {
            innermost = found;
            line = found.line().or(line);
        }
        cause = one.source();
    }
    let message = match innermost.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {STEPS} steps: does it loop for ever?"),
        kind => match innermost.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    Error::Template {
        name: name.to_owned(),
        line,
        message,
    }
}

thread_local! {
    static DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work` where the stack is deep enough for what a template may build.
pub(crate) fn deep_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if DEEP.get() {
        return work();
    }
    std::thread::scope(|scope| joined(spawned(scope, work)?))
}

/// The same for each of many, on as many threads as there are processors. What comes back is in order.
pub(crate) fn deep_stacks<A: Sync, B: Send>(all: &[A], work: impl Fn(&A) -> B + Sync) -> Result<Vec<B>> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = &work;
    let done = std::thread::scope(|scope| {
        let parts = all.chunks(all.len().div_ceil(n_threads).max(1));
        let parts = parts.map(|part| spawned(scope, move || Ok(part.iter().map(work).collect::<Vec<B>>())));
        // All are started before the first is waited for.
        let parts: Vec<_> = parts.collect();
        parts.into_iter().map(|part| joined(part?)).collect::<Result<Vec<_>>>()
    })?;
    Ok(done.into_iter().flatten().collect())
}

fn spawned<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let inside = || {
        DEEP.set(true);
        work()
    };
    let thread = std::thread::Builder::new()
        .name("template".to_owned())
        .stack_size(STACK);
    thread
        .spawn_scoped(scope, inside)
        .map_err(|source| Error::Thread { source })
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests;
