# Links fastkd._C for an older glibc (FASTKD_GLIBC) than that of this machine.
#
# The objects are those that the compiler always makes. Only the link differs: Zig's linker chooses each symbol
# of glibc in a version that FASTKD_GLIBC already has, from the tables that come with the PyPI package ziglang.
# libstdc++ is linked in, so that the module needs nothing but glibc and libgcc_s, which every Linux with torch
# has. A function that is younger than FASTKD_GLIBC stays undefined; wheels/check.py refuses such a module.
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "FASTKD_GLIBC needs GCC on Linux")
endif()

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'), end='')"
  OUTPUT_VARIABLE FASTKD_ZIG ERROR_QUIET RESULT_VARIABLE FASTKD_NO_ZIG)
if(FASTKD_NO_ZIG)
  message(FATAL_ERROR "FASTKD_GLIBC needs Zig's linker: pip install ziglang")
endif()

# libgcc.a has the table of the CPU's instruction sets. Zig's own runtime defines it too, and leaves it empty.
foreach(FASTKD_FILE libstdc++.a libgcc.a libgcc_s.so.1)
  execute_process(COMMAND "${CMAKE_CXX_COMPILER}" -print-file-name=${FASTKD_FILE}
                  OUTPUT_VARIABLE FASTKD_FOUND OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT EXISTS "${FASTKD_FOUND}")
    message(FATAL_ERROR "FASTKD_GLIBC needs ${FASTKD_FILE} of ${CMAKE_CXX_COMPILER}")
  endif()
  string(APPEND FASTKD_RUNTIME " ${FASTKD_FOUND}")
endforeach()

target_sources(_C PRIVATE cmake/old_glibc.cpp)
set(CMAKE_CXX_CREATE_SHARED_MODULE
    "\"${FASTKD_ZIG}\" cc -target ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu.${FASTKD_GLIBC} -shared -s -O2 \
-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map -o <TARGET> <OBJECTS> <LINK_LIBRARIES> \
${FASTKD_RUNTIME} -lrt -lpthread -ldl -lm")
