"""The Compose file as a project on an engine, and what is asked of its containers."""

import json

import yaml
from engine import compose_command, run
from stack import ROOT

PROJECT = "smn-test"


class Project:
    """`docker compose` with this repository's files and these variables; files that it needs are in `folder`."""

    def __init__(self, engine, folder, variables, files=("docker-compose.yml",)):
        self.engine, self.variables = engine, {**engine.environment, **variables}
        self.command = compose_command()
        old = len(self.command) == 1
        paths = []
        for name in files:
            path = ROOT / name
            if old:  # Compose 1 does not take the key `name`
                told = yaml.safe_load(path.read_text())
                told.pop("name", None)
                path = folder / name
                path.write_text(yaml.safe_dump(told, sort_keys=False))
            paths += ["-f", str(path)]
        self.command += ["-p", PROJECT, "--project-directory", str(ROOT), *paths]

    def compose(self, *words):
        return run([*self.command, *words], env=self.variables, cwd=ROOT)

    def containers(self, service):
        """The ids of a service's containers that run."""
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        return self.engine.docker(
            "ps", "-q", *(word for label in labels for word in ("--filter", f"label={label}"))
        ).split()

    def told(self, container):
        """What the engine says of a container."""
        return json.loads(self.engine.docker("inspect", container))[0]

    def health(self, service):
        return [self.told(container)["State"]["Health"]["Status"] for container in self.containers(service)]

    def inside(self, container, script):
        """(exit code, output) of a shell's words in a container."""
        done = self.engine.docker("exec", container, "sh", "-c", f"({script}) 2>&1; echo :$?")
        output, _, code = done.rstrip().rpartition(":")
        return int(code), output
