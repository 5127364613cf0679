//! Runs the statements of a template.

use std::sync::Arc;

use super::ast::{Assigned, Expr, ForLoop, MacroDecl, Post, Stmt};
use super::functions::{check_field, global};
use super::html::escaped;
use super::interpreter::{Flow, Interpreter, LoopState, MacroState};
use super::value::{JinjaError, Obj, Res, Val, fail};

/// Longest rendered prompt, in bytes.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

impl<'t> Interpreter<'t> {
    pub fn lookup(&self, name: &str) -> Val {
        let undefined = || Val::undef(format!("'{name}' is undefined"));
        self.given(name).cloned().or_else(|| global(name)).unwrap_or_else(undefined)
    }

    pub fn write(&mut self, text: &str, out: &mut String) -> Res<()> {
        if out.len() + text.len() > MAX_OUTPUT_BYTES {
            return fail(format!("the prompt grew beyond {MAX_OUTPUT_BYTES} bytes"));
        }
        out.push_str(text);
        Ok(())
    }

    pub fn run(&mut self, body: &'t [Stmt], out: &mut String) -> Res<Flow> {
        self.nested(|i| {
            for statement in body {
                i.step()?;
                let flow = i.statement(statement, out)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
            Ok(Flow::On)
        })
    }

    /// The text that `body` writes, in a scope of its own.
    pub fn captured(&mut self, body: &'t [Stmt]) -> Res<(String, Flow)> {
        let mut text = String::new();
        let flow = self.in_scope(self.scope, |i| i.run(body, &mut text))?;
        self.charge_bytes(text.len())?;
        Ok((text, flow))
    }

    fn statement(&mut self, statement: &'t Stmt, out: &mut String) -> Res<Flow> {
        match statement {
            Stmt::Text(text) => self.write(text, out)?,
            Stmt::Print(value) => self.print(value, out)?,
            Stmt::For(decl) => return self.for_loop(decl, out),
            Stmt::If(branches, otherwise) => return self.condition(branches, otherwise, out),
            Stmt::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            Stmt::SetBlock(target, filters, body) => {
                let (text, flow) = self.captured(body)?;
                let value = self.chained(Val::Str(text.into(), self.escape), filters)?;
                self.assign(target, value)?;
                return Ok(flow);
            }
            Stmt::FilterBlock(filters, body) => {
                let (text, flow) = self.captured(body)?;
                let value = self.chained(Val::str(text), filters)?;
                let text = self.text(&value)?;
                self.write(&text, out)?;
                return Ok(flow);
            }
            Stmt::With(values, body) => return self.with(values, body, out),
            Stmt::Macro(decl) => {
                let made = self.make_macro(decl);
                self.define(decl.name.clone(), made);
            }
            Stmt::CallBlock(decl, call) => self.call_block(decl, call, out)?,
            Stmt::Scope(escape, body) => {
                let before = self.escape;
                if let Some(on) = escape {
                    self.escape = self.eval(on)?.truth();
                }
                let flow = self.in_scope(self.scope, |i| i.run(body, out));
                self.escape = before;
                return flow;
            }
            Stmt::Block(_, scoped, body) => {
                let parent = if *scoped { self.scope } else { 0 };
                return self.in_scope(parent, |i| i.run(body, out));
            }
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
            Stmt::Loads(tag) => return fail(format!("'{tag}' needs another template, and there is none")),
        }
        Ok(Flow::On)
    }

    fn print(&mut self, value: &'t Expr, out: &mut String) -> Res<()> {
        let value = self.eval(value)?;
        let mut text = self.text(&value)?;
        if self.escape && !matches!(value, Val::Str(_, true)) {
            text = escaped(&text);
        }
        self.write(&text, out)
    }

    fn condition(
        &mut self,
        branches: &'t [(Expr, Vec<Stmt>)],
        otherwise: &'t [Stmt],
        out: &mut String,
    ) -> Res<Flow> {
        for (test, body) in branches {
            if self.eval(test)?.truth() {
                return self.run(body, out);
            }
        }
        self.run(otherwise, out)
    }

    fn with(&mut self, values: &'t [(Assigned, Expr)], body: &'t [Stmt], out: &mut String) -> Res<Flow> {
        let mut given = Vec::new();
        for (target, value) in values {
            given.push((target, self.eval(value)?));
        }
        self.in_scope(self.scope, |i| {
            for (target, value) in given {
                i.assign(target, value)?;
            }
            i.run(body, out)
        })
    }

    fn call_block(&mut self, decl: &'t MacroDecl, call: &'t Expr, out: &mut String) -> Res<()> {
        let caller = self.make_macro(decl);
        let Expr::Chain(value, posts) = call else { return fail("expected call") };
        let Some((Post::Call(arguments), before)) = posts.split_last() else { return fail("expected call") };
        let value = self.eval(value)?;
        let function = self.chained(value, before)?;
        let mut arguments = self.arguments(arguments)?;
        arguments.named.push(("caller".into(), caller));
        let value = self.call(&function, arguments)?;
        let text = self.text(&value)?;
        self.write(&text, out)
    }

    fn make_macro(&mut self, decl: &'t MacroDecl) -> Val {
        self.macros.push(MacroState { decl, scope: self.scope });
        self.keep_scopes();
        Val::Obj(Obj::Macro(self.macros.len() - 1))
    }

    fn for_loop(&mut self, decl: &'t ForLoop, out: &mut String) -> Res<Flow> {
        let iterated = self.eval(&decl.iter)?;
        let around = self.scope;
        self.run_loop(decl, &iterated, around, 0, out)?;
        Ok(Flow::On)
    }

    /// Runs a loop over `iterated` in the scope `around`.
    pub fn run_loop(
        &mut self,
        decl: &'t ForLoop,
        iterated: &Val,
        around: usize,
        depth: usize,
        out: &mut String,
    ) -> Res<()> {
        let mut items = self.elements(iterated)?;
        if let Some(test) = &decl.test {
            let mut kept = Vec::new();
            for item in items {
                let taken = self.in_scope(around, |i| {
                    i.assign(&decl.target, item.clone())?;
                    Ok(i.eval(test)?.truth())
                })?;
                kept.extend(taken.then_some(item));
            }
            items = kept;
        }
        let at = self.loops.len();
        let recursive = decl.recursive.then_some((decl, around));
        let items = Arc::new(items);
        self.loops.push(LoopState { items: items.clone(), index: 0, depth, changed: None, recursive });
        // Jinja's `else` runs where no round came to its end, be it for a `break` or `continue`.
        let mut whole_round = false;
        for (index, item) in items.iter().enumerate() {
            self.loops[at].index = index;
            let flow = self.in_scope(around, |i| {
                i.define("loop".into(), Val::Obj(Obj::Loop(at)));
                i.assign(&decl.target, item.clone())?;
                i.run(&decl.body, out)
            })?;
            whole_round |= flow == Flow::On;
            if flow == Flow::Break {
                break;
            }
        }
        if !whole_round && !decl.otherwise.is_empty() {
            self.in_scope(around, |i| i.run(&decl.otherwise, out))?;
        }
        Ok(())
    }

    pub fn assign(&mut self, target: &Assigned, value: Val) -> Res<()> {
        match target {
            Assigned::Name(name) => self.define(name.clone(), value),
            Assigned::Field(name, field) => {
                let Val::Obj(Obj::Namespace(at)) = self.lookup(name) else {
                    return fail(format!("cannot assign attribute on non-namespace object '{name}'"));
                };
                check_field(field)?;
                self.namespaces[at].insert(field.clone(), value);
            }
            Assigned::Tuple(targets) => {
                let values = match &value {
                    Val::Undef(why) if !targets.is_empty() => return fail(why.to_string()),
                    value => self.elements(value)?,
                };
                if values.len() != targets.len() {
                    return Err(JinjaError(format!(
                        "{} values to unpack, expected {}",
                        values.len(),
                        targets.len()
                    )));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
        }
        Ok(())
    }
}
