//! Nestings of dicts, lists and tuples: their leaves, the leaves' dotted names, and gradients in the same nesting.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::collections::HashSet;

/// The shape of a nesting, and the containers that it was made of.
#[derive(Debug)]
pub(crate) struct Tree {
    node: Node,
    /// The leaves' names, in order.
    pub(crate) names: Vec<String>,
}

#[derive(Debug)]
enum Node {
    Leaf(usize),
    Dict(Py<PyDict>, Vec<(Py<PyAny>, Self)>),
    List(Py<PyList>, Vec<Self>),
    Tuple(Py<PyTuple>, Vec<Self>),
}

/// The name of a single array that is in no container.
const ALONE: &str = "params";

impl Tree {
    /// Takes a nesting apart: its tree and its leaves.
    pub(crate) fn flatten<'py>(tree: &Bound<'py, PyAny>) -> PyResult<(Self, Vec<Bound<'py, PyAny>>)> {
        let (mut names, mut leaves) = (Vec::new(), Vec::new());
        let node = grow(tree, String::new(), &mut names, &mut leaves)?;
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(PyValueError::new_err(format!("params: two arrays are called '{twice}'; rename a key")));
        }
        Ok((Self { node, names }, leaves))
    }

    /// Visits the leaves of another nesting in this tree's order; false if it is not the same nesting.
    pub(crate) fn visit<'py>(
        &self,
        other: &Bound<'py, PyAny>,
        mut visit: impl FnMut(usize, Bound<'py, PyAny>),
    ) -> PyResult<bool> {
        walk(&self.node, other.clone(), &mut visit, &mut |_| {})
    }

    /// As [`Self::visit`], and shows each dict that is of a subclass before its leaves.
    pub(crate) fn visit_with<'py>(
        &self,
        other: &Bound<'py, PyAny>,
        mut visit: impl FnMut(usize, Bound<'py, PyAny>),
        mut subclass: impl FnMut(&Bound<'py, PyDict>),
    ) -> PyResult<bool> {
        walk(&self.node, other.clone(), &mut visit, &mut subclass)
    }

    /// Visits the leaves that are in the tree's own containers now.
    pub(crate) fn visit_own<'py>(
        &self,
        py: Python<'py>,
        visit: impl FnMut(usize, Bound<'py, PyAny>),
    ) -> PyResult<bool> {
        match &self.node {
            Node::Leaf(_) => Ok(true), // the caller's own variable: out of sight
            Node::Dict(own, _) => self.visit(own.bind(py), visit),
            Node::List(own, _) => self.visit(own.bind(py), visit),
            Node::Tuple(own, _) => self.visit(own.bind(py), visit),
        }
    }

    /// In words, how another nesting differs from this one.
    pub(crate) fn differences(&self, other: &Bound<'_, PyAny>) -> PyResult<String> {
        let (mut names, mut leaves) = (Vec::new(), Vec::new());
        grow(other, String::new(), &mut names, &mut leaves)?;
        let missing: Vec<_> = self.names.iter().filter(|name| !names.contains(name)).collect();
        let extra: Vec<_> = names.iter().filter(|name| !self.names.contains(name)).collect();
        let mut parts = Vec::new();
        if !missing.is_empty() {
            parts.push(format!("missing {}", quoted(&missing)));
        }
        if !extra.is_empty() {
            parts.push(format!("not among the parameters {}", quoted(&extra)));
        }
        if parts.is_empty() {
            parts.push("the same names in another nesting of dict, list and tuple".to_owned());
        }
        Ok(parts.join("; "))
    }
}

fn quoted(names: &[&String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn grow<'py>(
    tree: &Bound<'py, PyAny>,
    path: String,
    names: &mut Vec<String>,
    leaves: &mut Vec<Bound<'py, PyAny>>,
) -> PyResult<Node> {
    let mut child = |key: &str, item: &Bound<'py, PyAny>| {
        if path.split('.').count() > 200 {
            return Err(PyTypeError::new_err("params: nested more than 200 levels deep; does it contain itself?"));
        }
        grow(item, join(&path, key), names, leaves)
    };
    if let Ok(dict) = tree.cast::<PyDict>() {
        // Not `to_string`: handlers of signals run in Python's `str`, and it would swallow a KeyboardInterrupt.
        let children =
            dict.iter().map(|(key, item)| Ok((key.clone().unbind(), child(&key.str()?.to_string_lossy(), &item)?)));
        return Ok(Node::Dict(dict.clone().unbind(), children.collect::<PyResult<_>>()?));
    }
    if let Ok(list) = tree.cast::<PyList>() {
        let children = list.iter().enumerate().map(|(i, item)| child(&i.to_string(), &item));
        return Ok(Node::List(list.clone().unbind(), children.collect::<PyResult<_>>()?));
    }
    if let Ok(tuple) = tree.cast::<PyTuple>() {
        let children = tuple.iter().enumerate().map(|(i, item)| child(&i.to_string(), &item));
        return Ok(Node::Tuple(tuple.clone().unbind(), children.collect::<PyResult<_>>()?));
    }
    names.push(if path.is_empty() { ALONE.to_owned() } else { path });
    leaves.push(tree.clone());
    Ok(Node::Leaf(leaves.len() - 1))
}

fn walk<'py, V: FnMut(usize, Bound<'py, PyAny>), D: FnMut(&Bound<'py, PyDict>)>(
    node: &Node,
    other: Bound<'py, PyAny>,
    visit: &mut V,
    subclass: &mut D,
) -> PyResult<bool> {
    match node {
        Node::Leaf(i) => {
            let container = is_container(&other);
            if !container {
                visit(*i, other);
            }
            Ok(!container)
        }
        Node::Dict(_, children) => {
            let Some(dict) = other.cast::<PyDict>().ok().filter(|dict| dict.len() == children.len()) else {
                return Ok(false);
            };
            if !dict.is_exact_instance_of::<PyDict>() {
                subclass(dict);
            }
            // The very keys in the same order, as a rule: then none need be looked up, which takes longer than all other
            // checks. What is visited may run Python code, which may change the dict; its iterator would panic.
            let mut in_order = Some(dict.iter());
            for (key, child) in children {
                let unchanged = in_order.as_mut().filter(|_| dict.len() == children.len());
                let next = unchanged.and_then(Iterator::next).filter(|(own, _)| own.is(key));
                let item = if let Some((_, item)) = next {
                    item
                } else {
                    in_order = None;
                    let Some(item) = dict.get_item(key)? else { return Ok(false) };
                    item
                };
                if !walk(child, item, visit, subclass)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        // A list of gradients may answer a tuple of parameters, and the other way round: their names are the same.
        Node::List(_, children) | Node::Tuple(_, children) => {
            if let Ok(list) = other.cast::<PyList>() {
                if list.len() != children.len() {
                    return Ok(false);
                }
                for (i, child) in children.iter().enumerate() {
                    if !walk(child, list.get_item(i)?, visit, subclass)? {
                        return Ok(false);
                    }
                }
                return Ok(true);
            }
            let Ok(tuple) = other.cast::<PyTuple>() else { return Ok(false) };
            if tuple.len() != children.len() {
                return Ok(false);
            }
            for (i, child) in children.iter().enumerate() {
                if !walk(child, tuple.get_item(i)?, visit, subclass)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

fn is_container(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyDict>() || object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()
}
