"""Stand-ins for nvidia's libraries: with them a build of torch for CUDA runs on the CPU of a machine that has none of them."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
STRINGS = re.compile(r"(ErrorString|ErrorName|StatusString|_v2String|ncclGetLastError)$")
NOT_THEIRS = re.compile(r"_?Py|__(gmon|cxa|tls|gxx)|_ITM|environ$")  # Python's and the compiler's
SYSTEM = re.compile("GLIBC|CXXABI|GCC")  # versions of symbols
FUNCTIONS = {
    "cudaGetDeviceCount": f"int cudaGetDeviceCount(int *count) {{ *count = 0; return {NO_DEVICE}; }}",
    "cudaDriverGetVersion": "int cudaDriverGetVersion(int *version) { *version = 0; return 0; }",
    "cudaRuntimeGetVersion": "int cudaRuntimeGetVersion(int *version) { *version = 0; return 0; }",
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "__cudaRegisterFatBinary": "void *__cudaRegisterFatBinary(void) { static void *handle[8]; return handle; }",
}


def build_standins(folder):
    """Build the libraries that the shared objects in this folder (torch/lib) want and the system does not have.

    Each function of theirs says that there is no device. Returns the names of the libraries.
    """
    objects = [path for path in sorted(Path(folder).glob("*.so*")) if not path.is_symlink()]
    here = {path.name for path in objects}
    names = {name for path in objects for name in re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", path))}
    wanted = sorted(name for name in names - here if f"\t{name} " not in _output("/sbin/ldconfig", "-p"))
    versions = defaultdict(set)  # of each library
    missing, defined = set(), set()
    for path in objects:
        library = None
        for line in _output("readelf", "-V", "-W", path).splitlines():
            if found := re.search(r"File: (\S+)", line):
                library = found[1]
            elif (found := re.search(r"Name: (\S+)", line)) and library in wanted:
                versions[library].add(found[1])
        missing |= set(re.findall(r"^\s+U (\S+)$", _output("nm", "-D", "--undefined-only", path), flags=re.MULTILINE))
        defined |= {line.split()[-1].partition("@")[0] for line in _output("nm", "-D", "--defined-only", path).splitlines()}
    functions = defaultdict(set)  # by version; "" where none is asked for
    for name, _, version in (symbol.partition("@") for symbol in missing):
        if name not in defined and not NOT_THEIRS.match(name) and not SYSTEM.search(version):
            functions[version.lstrip("@")].add(name)
    for i, library in enumerate(wanted):
        chosen = {version: functions[version] for version in versions[library]}
        _compile(Path(folder) / library, chosen, functions[""] if i == 0 else set())
    return wanted


def _compile(path, by_version, others):
    names = sorted(set().union(others, *by_version.values()))
    source = path.with_suffix(".c")
    source.write_text("\n".join(map(_definition, names)) + "\n")
    script = path.with_suffix(".map")
    nodes = [f"{version} {{ global: {' '.join(f'{name};' for name in found)} }};" for version, found in by_version.items()]
    script.write_text("\n".join(nodes))
    versioned = [f"-Wl,--version-script={script}"] if by_version else []
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{path.name}", *versioned, "-o", path, source], check=True)
    source.unlink()
    script.unlink()


def _definition(name):
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if STRINGS.search(name):
        return f'const char *{name}(void) {{ return "there is no device"; }}'
    return f"int {name}(void) {{ return {NO_DEVICE}; }}"


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
