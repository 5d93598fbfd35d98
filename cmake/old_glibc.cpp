// Symbols that libstdc++ expects and that a link for an older glibc lacks (old_glibc.cmake).

extern "C" {

// glibc 2.32 and newer set it while a process has one thread, and libstdc++ then counts references without
// atomic instructions. 0 is right for any number of threads.
char __libc_single_threaded = 0;

// libstdc++ refers to this function weakly, which does not make a linker load it from the archive.
[[noreturn]] void __cxa_pure_virtual();
void (*const fastkd_loads_pure_virtual)() = __cxa_pure_virtual;

}  // extern "C"
