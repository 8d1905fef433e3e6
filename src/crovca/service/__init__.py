"""An index over HTTP: the API, the page and the tools for agents, all on the functions of ``collection``."""
