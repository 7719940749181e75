/* Leave to use AMX's tiles. */

#ifdef __AMX_TILE__

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Ask Linux for the use of tiles (https://docs.kernel.org/arch/x86/xstate.html); whether it allows. */
int32_t lmtp_allow_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

#endif
