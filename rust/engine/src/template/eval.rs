//! Evaluates expressions and calls.

use std::sync::Arc;

use indexmap::IndexMap;

use super::args::Arguments;
use super::ast::{CallExpr, Expr, Post};
use super::interpreter::{Interpreter, MacroState};
use super::value::{DictKey, Obj, Res, Val, fail};

impl<'t> Interpreter<'t> {
    pub fn eval(&mut self, expr: &'t Expr) -> Res<Val> {
        self.step()?;
        match expr {
            Expr::Const(value) => Ok(value.clone()),
            Expr::Name(name) => Ok(self.lookup(name)),
            _ => self.nested(|i| i.eval_nested(expr)),
        }
    }

    fn eval_nested(&mut self, expr: &'t Expr) -> Res<Val> {
        match expr {
            Expr::Const(_) | Expr::Name(_) => self.eval(expr),
            Expr::List(items) => Val::list(self.all(items)?),
            Expr::Tuple(items) => Val::tuple(self.all(items)?),
            Expr::Dict(pairs) => {
                let mut map = IndexMap::new();
                for (key, value) in pairs {
                    let key = DictKey::of(self.eval(key)?)?;
                    map.insert(key, self.eval(value)?);
                }
                Val::dict(map)
            }
            Expr::Negative(value) => {
                let value = self.eval(value)?;
                self.signed(true, &value)
            }
            Expr::Positive(value) => {
                let value = self.eval(value)?;
                self.signed(false, &value)
            }
            Expr::Not(value) => Ok(Val::Bool(!self.eval(value)?.truth())),
            Expr::Math(first, rest) => {
                let mut value = self.eval(first)?;
                for (op, operand) in rest {
                    let operand = self.eval(operand)?;
                    value = self.math(op, &value, &operand)?;
                }
                Ok(value)
            }
            Expr::And(parts) => self.first_that(parts, false),
            Expr::Or(parts) => self.first_that(parts, true),
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let part = self.eval(part)?;
                    text.push_str(&self.text(&part)?);
                }
                self.charge_bytes(text.len())?;
                Ok(Val::str(text))
            }
            Expr::Compare(first, rest) => self.compared(first, rest),
            Expr::Cond(parts) => self.conditional(parts),
            Expr::Slice(_) => fail("a slice outside a subscript"),
            Expr::Chain(value, posts) => {
                let value = self.eval(value)?;
                self.chained(value, posts)
            }
        }
    }

    fn conditional(&mut self, parts: &'t (Expr, Expr, Option<Expr>)) -> Res<Val> {
        match (self.eval(&parts.1)?.truth(), &parts.2) {
            (true, _) => self.eval(&parts.0),
            (false, Some(otherwise)) => self.eval(otherwise),
            (false, None) => {
                Ok(Val::undef("the inline if-expression evaluated to false and no else section was defined."))
            }
        }
    }

    fn compared(&mut self, first: &'t Expr, rest: &'t [(&'static str, Expr)]) -> Res<Val> {
        let mut left = self.eval(first)?;
        for (op, operand) in rest {
            let right = self.eval(operand)?;
            if !self.compare(op, &left, &right)? {
                return Ok(Val::Bool(false));
            }
            left = right;
        }
        Ok(Val::Bool(true))
    }

    fn all(&mut self, items: &'t [Expr]) -> Res<Vec<Val>> {
        items.iter().map(|item| self.eval(item)).collect()
    }

    /// The first value whose truth is `wanted`, or the last one.
    fn first_that(&mut self, parts: &'t [Expr], wanted: bool) -> Res<Val> {
        let mut value = Val::None;
        for part in parts {
            value = self.eval(part)?;
            if value.truth() == wanted {
                break;
            }
        }
        Ok(value)
    }

    /// Applies what follows a value.
    pub fn chained(&mut self, value: Val, posts: &'t [Post]) -> Res<Val> {
        let mut value = value;
        for post in posts {
            self.step()?;
            value = match post {
                Post::Attr(name) => self.attribute(&value, name)?,
                Post::Item(Expr::Slice(parts)) => {
                    let mut bounds = Vec::new();
                    for part in parts.iter() {
                        bounds.push(match part {
                            Some(part) => self.eval(part)?,
                            None => Val::None,
                        });
                    }
                    self.slice(&value, &bounds)?
                }
                Post::Item(key) => {
                    let key = self.eval(key)?;
                    self.item(&value, &key)?
                }
                Post::Call(call) => {
                    let arguments = self.arguments(call)?;
                    self.call(&value, arguments)?
                }
                Post::Filter(name, call) => {
                    let arguments = self.arguments(call)?;
                    self.filter(name, &value, &arguments)?
                }
                Post::Test(name, call, negated) => {
                    let arguments = self.arguments(call)?;
                    Val::Bool(self.test(name, &value, &arguments)? != *negated)
                }
            };
        }
        Ok(value)
    }

    pub fn arguments(&mut self, call: &'t CallExpr) -> Res<Arguments> {
        let mut given = Arguments { all: self.all(&call.args)?, named: Vec::new() };
        for (name, value) in &call.named {
            let value = self.eval(value)?;
            given.add_named(name.clone(), value)?;
        }
        if let Some(star) = &call.star {
            let more = self.eval(star)?;
            given.all.extend(self.elements(&more)?);
        }
        if let Some(double_star) = &call.double_star {
            let Val::Dict(dict) = self.eval(double_star)? else {
                return fail("argument after ** must be a mapping");
            };
            for (key, value) in &dict.map {
                let Some(name) = key.0.as_str() else { return fail("keywords must be strings") };
                given.add_named(name.into(), value.clone())?;
            }
        }
        Ok(given)
    }

    pub fn call(&mut self, function: &Val, arguments: Arguments) -> Res<Val> {
        self.step()?;
        match function {
            Val::Undef(why) => fail(why.to_string()),
            Val::Method(owner, name) => self.method(owner, name, &arguments),
            Val::Obj(Obj::Function(name)) => self.function(name, arguments),
            Val::Obj(Obj::Macro(at)) => self.nested(|i| i.call_macro(i.macros[*at], arguments)),
            Val::Obj(Obj::Loop(at)) => {
                let Some((decl, around)) = self.loops[*at].recursive else {
                    return fail("The loop must have the 'recursive' marker enabled.");
                };
                let [iterated] = &arguments.all[..] else { return fail("loop() takes one argument") };
                let depth = self.loops[*at].depth + 1;
                let mut text = String::new();
                self.nested(|i| i.run_loop(decl, iterated, around, depth, &mut text))?;
                self.charge_bytes(text.len())?;
                Ok(Val::str(text))
            }
            Val::Obj(Obj::Joiner(at)) => {
                let (separator, used) = &mut self.joiners[*at];
                Ok(if std::mem::replace(used, true) { separator.clone() } else { Val::str("") })
            }
            _ => fail(format!("'{}' object is not callable", function.type_name())),
        }
    }

    fn call_macro(&mut self, made: MacroState<'t>, arguments: Arguments) -> Res<Val> {
        let decl = made.decl;
        let mut named = arguments.named;
        let mut take = |name: &str| {
            let at = named.iter().position(|(n, _)| &**n == name)?;
            Some(named.remove(at).1)
        };
        let mut values = Vec::new();
        for (i, param) in decl.params.iter().enumerate() {
            values.push(match arguments.all.get(i) {
                Some(value) => Some(value.clone()),
                None => take(param),
            });
        }
        let caller = if decl.uses_caller { Some(take("caller")) } else { None };
        let extra = arguments.all.get(decl.params.len()..).unwrap_or_default().to_vec();
        if !named.is_empty() && !decl.uses_kwargs {
            return fail(format!("macro '{}' takes no keyword argument '{}'", decl.name, named[0].0));
        }
        if !extra.is_empty() && !decl.uses_varargs {
            let count = decl.params.len();
            return fail(format!("macro '{}' takes not more than {count} argument(s)", decl.name));
        }
        let escape = self.escape;
        let text = self.in_scope(made.scope, |i| {
            if let Some(caller) = caller {
                i.define("caller".into(), caller.unwrap_or_else(|| Val::undef("No caller defined")));
            }
            if decl.uses_kwargs {
                let named = named.into_iter().map(|(name, v)| (DictKey(Val::str(name)), v));
                i.define("kwargs".into(), Val::dict(named.collect())?);
            }
            if decl.uses_varargs {
                i.define("varargs".into(), Val::tuple(extra)?);
            }
            i.parameters(made, values)?;
            let mut text = String::new();
            i.run(&decl.body, &mut text)?;
            Ok(text)
        })?;
        self.charge_bytes(text.len())?;
        Ok(Val::Str(text.into(), escape))
    }

    fn parameters(&mut self, made: MacroState<'t>, values: Vec<Option<Val>>) -> Res<()> {
        let decl = made.decl;
        let first_default = decl.params.len() - decl.defaults.len();
        for (i, (param, value)) in decl.params.iter().zip(values).enumerate() {
            let value = match (value, i.checked_sub(first_default)) {
                (Some(value), _) => value,
                (None, Some(at)) => self.eval(&decl.defaults[at])?,
                (None, None) => Val::undef(format!("parameter '{param}' was not provided")),
            };
            self.define(Arc::clone(param), value);
        }
        Ok(())
    }
}
