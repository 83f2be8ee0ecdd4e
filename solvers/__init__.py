"""LP and MIP back ends behind one protocol: one file each, imported when used."""
