"""For a checkout that is not installed: register the plugin once; and pytester for the tests."""

from importlib.metadata import entry_points

_INSTALLED = any(point.value == "quantbench.plugin" for point in entry_points(group="pytest11"))
pytest_plugins = ["pytester"] if _INSTALLED else ["pytester", "quantbench.plugin"]
