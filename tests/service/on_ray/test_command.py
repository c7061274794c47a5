"""`smn serve --on ray` where it cannot: exit code 2 and one line that names the fix."""

import subprocess
import sys

import pytest


def serve(*arguments, before=""):
    code = (
        f"import sys\n{before}\nsys.argv = ['smn', 'serve', '--on', 'ray', *{list(arguments)}]\nimport smn\nsmn.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_without_the_extra_it_says_what_to_install():
    code, line = serve("--registry", "redis://127.0.0.1", before="sys.modules['ray'] = None")
    assert code == 2 and line == "smn: error: --on ray needs the extra ray: pip install 'smn[ray]'"


def test_a_folder_is_no_registry_for_several_nodes(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    code, line = serve("--registry", str(tmp_path))
    assert code == 2 and "--registry redis://" in line


def test_an_address_that_others_reach_needs_an_admin_key():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    code, line = serve("--registry", "redis://127.0.0.1", "--host", "0.0.0.0")
    assert code == 2 and "SMN_ADMIN_KEYS" in line
