"""The lab itself: a real Xen, machines that take commands, and the installed product in them."""

from __future__ import annotations

import pytest
from xenlab import Lab


def test_dom0_runs_on_xen_4_17(lab: Lab) -> None:
    assert "4.17" in lab.dom0.sh("xl info xen_version; xl info | grep xen_version")
    assert "control_d" in lab.dom0.sh("cat /proc/xen/capabilities")


def test_domains_are_those_that_were_asked_for(lab: Lab) -> None:
    web01 = lab.domu("web01")
    listed = lab.dom0.run(["xl", "list"]).stdout
    assert [line.split()[0] for line in listed.splitlines()] >= ["Name", "Domain-0", "web01"]
    assert lab.dom0.sh(f"xenstore-read /local/domain/{web01.domid}/name").strip() == "web01"
    assert lab.dom0.sh(f"xenstore-read $(xenstore-read /local/domain/{web01.domid}/vm)/uuid").strip() == str(
        web01.uuid
    )


@pytest.mark.parametrize("name", ["dom0", "web01"])
def test_the_installed_product_can_be_imported(lab: Lab, name: str) -> None:
    machine = lab.dom0 if name == "dom0" else lab.domu(name)
    where = machine.python("import vmtoken, grpc, cryptography; print(vmtoken.__file__)")
    assert where.startswith("/usr/lib/vmtoken/")
