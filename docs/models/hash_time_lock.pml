/*
 * The hash-time-lock variant, for islands that trust no common log: two locks under one hash with two deadlines.
 *
 *   - The leader knows the secret. Its money is locked on island 1 until T1, the follower's on island 2 until T2 < T1.
 *   - The leader claims on island 2 with the secret while that island's clock is at most T2.
 *   - The follower sees the secret when the claim is final there (at most FINALITY_2 later), reacts (at most REACTION
 *     later), and its claim on island 1 takes effect at most FINALITY_1 later, if that clock is still before T1.
 *   - A lock whose deadline has passed is refunded to whoever locked it.
 *
 * Each island's clock differs from true time by a constant of at most SKEW, either way. Time is discrete: one tick is the unit
 * of all bounds. Both parties are honest and the follower is awake: a follower that reacts later than REACTION loses
 * its money whatever the gap. That risk remains; decision escrow (decision_escrow.pml) does not have it.
 *
 * Split: one lock claimed, the other refunded. It cannot happen if and only if
 *
 *     T1 - T2 > REACTION + FINALITY_1 + FINALITY_2 + 2 * SKEW
 */

#ifndef REACTION
#define REACTION 2
#endif
#ifndef FINALITY_1
#define FINALITY_1 2
#endif
#ifndef FINALITY_2
#define FINALITY_2 1
#endif
#ifndef SKEW
#define SKEW 1
#endif
#define BOUND (REACTION + FINALITY_1 + FINALITY_2 + 2 * SKEW)
#ifndef GAP
#define GAP (BOUND + 1)
#endif

#define T2 (2 + SKEW)
#define T1 (T2 + GAP)
#define END (T1 + SKEW + 1)

mtype = { locked, claimed, refunded }
mtype = { quiet, leader_claimed, secret_seen, follower_claimed, over }

mtype lock_1 = locked, lock_2 = locked
mtype stage = quiet
short now = 0, since = 0
short skew_1, skew_2        /* what each island's clock is ahead of true time */

#define CLOCK_1 (now + skew_1)
#define CLOCK_2 (now + skew_2)
/* the tick at which something that takes at most so long must have happened */
#define OVERDUE ((stage == leader_claimed && now - since >= FINALITY_2) \
                 || (stage == secret_seen && now - since >= REACTION) \
                 || (stage == follower_claimed && now - since >= FINALITY_1))

active proctype Islands() {
    select(skew_1 : -SKEW .. SKEW);
    select(skew_2 : -SKEW .. SKEW);
    do
    :: d_step { now < END && !OVERDUE -> now++ }
    :: d_step { stage == quiet && lock_2 == locked && CLOCK_2 <= T2 ->
                lock_2 = claimed; stage = leader_claimed; since = now }
    :: d_step { stage == leader_claimed -> stage = secret_seen; since = now }
    :: d_step { stage == secret_seen -> stage = follower_claimed; since = now }
    :: d_step { stage == follower_claimed ->
                stage = over;
                if
                :: lock_1 == locked && CLOCK_1 < T1 -> lock_1 = claimed
                :: else
                fi }
    :: d_step { lock_1 == locked && CLOCK_1 >= T1 -> lock_1 = refunded }
    :: d_step { lock_2 == locked && CLOCK_2 > T2 -> lock_2 = refunded }
    :: now == END && !OVERDUE && stage != leader_claimed && stage != secret_seen && stage != follower_claimed -> break
    od
}

ltl no_split { [] !((lock_2 == claimed && lock_1 == refunded) || (lock_1 == claimed && lock_2 == refunded)) }

/* To be violated: the swap can succeed, and can be called off. */
ltl never_swaps { [] !(lock_1 == claimed && lock_2 == claimed) }
ltl never_refunds { [] !(lock_1 == refunded && lock_2 == refunded) }
