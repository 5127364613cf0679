//! What is assigned to, and the parameters of macros.

use std::collections::HashSet;
use std::sync::Arc;

use super::ast::{Assigned, Expr, MacroDecl};
use super::parser::Parser;
use super::value::{Res, fail};

/// Parameters, and the defaults of the last ones.
type Signature = (Vec<Arc<str>>, Vec<Expr>);

impl Parser {
    pub fn signature(&mut self) -> Res<Signature> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            params.push(self.expect_name()?);
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return fail("non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    pub fn macro_decl(
        &mut self,
        name: Arc<str>,
        is_macro: bool,
        signature: Option<Signature>,
    ) -> Res<MacroDecl> {
        self.read.push(HashSet::new());
        let (params, defaults) = match signature {
            Some(signature) => signature,
            None => self.signature()?,
        };
        let loops = std::mem::take(&mut self.loops);
        let body = self.body(&[if is_macro { "endmacro" } else { "endcall" }]);
        self.loops = loops;
        let read = self.read.pop().unwrap_or_default();
        let uses = |name: &str| read.contains(name) && !params.iter().any(|p| &**p == name);
        Ok(MacroDecl {
            name,
            uses_caller: uses("caller"),
            uses_kwargs: uses("kwargs"),
            uses_varargs: uses("varargs"),
            params,
            defaults,
            body: body?,
        })
    }

    /// What is assigned to: a name, a field of a namespace, or several with commas between.
    pub fn target(&mut self, fields: bool, ends: &[&str]) -> Res<Assigned> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = ends.iter().any(|e| self.is_name(e)) || self.is_op("=") || self.is_op(")");
            if ended && !targets.is_empty() {
                break;
            }
            targets.push(self.single_target(fields)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            last => {
                targets.extend(last);
                Ok(Assigned::Tuple(targets))
            }
        }
    }

    fn single_target(&mut self, fields: bool) -> Res<Assigned> {
        if self.skip_op("(") {
            let inner = self.nested(|p| p.target(false, &[]))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return fail(format!("can't assign to '{name}'"));
        }
        if fields && self.skip_op(".") {
            self.reads(&name);
            return Ok(Assigned::Field(name, self.expect_name()?));
        }
        Ok(Assigned::Name(name))
    }
}
