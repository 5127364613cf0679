"""The conformance test of the plugin protocol: each rule that binds plugins, as a case with the id of the rule.

from octavo.plugins.conformance import UrlTarget, check
print(check(UrlTarget("http://127.0.0.1:9000")).text())
"""

from octavo.plugins.conformance.runner import CASES, Report, Result, check
from octavo.plugins.conformance.target import PluginTarget, Reply, Target, TargetError, UrlTarget

__all__ = ["CASES", "PluginTarget", "Reply", "Report", "Result", "Target", "TargetError", "UrlTarget", "check"]
